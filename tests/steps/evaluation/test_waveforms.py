import numpy as np

from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation.waveforms import decode_clips, embed_waveforms


def test_sounds_in_memory_are_fused_as_clips_are(attentive, corpus, reporter):
    sounds = decode_clips(corpus, range(len(corpus)), sample_rate=8000)
    found = embed_waveforms(
        attentive,
        sounds,
        total=len(corpus),
        description="embed",
        reporter=reporter,
        batch_size=4,
        precision="fp32",
        device="cpu",
    )
    np.testing.assert_allclose(found, embed_clips(attentive, corpus, reporter=reporter).vectors, atol=1e-5)
