from clapkit.data.recordings import recording
from clapkit.types import Clip


def test_a_clip_is_of_its_source_and_otherwise_of_itself():
    assert recording(Clip("a", "a.wav", source="tape")) == "tape"
    assert recording(Clip("a", "a.wav")) == "a"
    assert recording(Clip("a", "a.wav", source="")) == "a"
