import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from clapkit.data.caption_features import label_features, label_groups, tfidf_features
from clapkit.errors import ManifestError


def test_weights_are_those_computed_by_hand() -> None:
    # Document frequencies: dog 2, rain 1 (N = 2). idf(dog) = 1 + ln(3/3) = 1, idf(rain) = 1 + ln(3/2) = 1.405465.
    # Row 0, "dog dog rain": dog (1 + ln 2) * 1 = 1.693147, rain 1.405465; norm 2.200473; 0.769447 and 0.638710.
    features = tfidf_features(["Dog, dog: rain!", "dog"])
    dog, rain = 1 + math.log(2), 1 + math.log(3 / 2)
    expected = [[dog / math.hypot(dog, rain), rain / math.hypot(dog, rain)], [1, 0]]
    assert features == pytest.approx(np.array(expected), abs=1e-6)
    assert features[0] == pytest.approx([0.769447, 0.638710], abs=1e-6)
    assert features.dtype == np.float32


def test_all_terms_give_the_tfidf_of_scikit_learn() -> None:
    captions = [
        "a dog barks at a dog",
        "rain falls on a tin roof",
        "the dog and the rain",
        "wind",
        "a man speaks as rain falls",
    ]
    oracle = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    expected = oracle.fit_transform(captions).toarray()  # terms in alphabetical order
    ours = tfidf_features(captions)
    assert ours.shape == expected.shape
    assert ours @ ours.T == pytest.approx(expected @ expected.T, abs=1e-6)  # the same but for the order of terms
    frequency = (expected > 0).sum(axis=0)
    assert ours == pytest.approx(expected[:, np.argsort(-frequency, kind="stable")], abs=1e-6)


def test_rows_have_unit_norm() -> None:
    norms = np.linalg.norm(tfidf_features(["a dog", "a a a cat and the dog", "rain"]), axis=1)
    assert norms == pytest.approx(np.ones(3), abs=1e-6)


def test_the_terms_of_most_documents_are_kept_and_ties_are_alphabetical() -> None:
    # Document frequencies: rain 3, cat 1, dog 1, owl 1.
    features = tfidf_features(["rain owl", "rain dog", "rain cat"], max_terms=2)
    # Columns rain and cat: "dog" and "owl" are dropped.
    assert features[0] == pytest.approx([1, 0])
    assert features[1] == pytest.approx([1, 0])
    assert (features[2] > 0).all()


def test_a_document_without_a_kept_term_is_a_row_of_zeros() -> None:
    features = tfidf_features(["rain", "rain", "owl", "..."], max_terms=1)
    assert features.tolist() == [[1.0], [1.0], [0.0], [0.0]]


def test_captions_without_any_word_are_refused() -> None:
    with pytest.raises(ManifestError, match="2 captions: found no word in any, expected sentences; write captions"):
        tfidf_features(["...", "?"])


def test_case_width_and_punctuation_do_not_matter() -> None:
    assert (
        tfidf_features(["DOG barks", "dog, ｂａｒｋｓ!", "owl"])[:2].tolist()
        == [tfidf_features(["dog barks", "dog barks", "owl"])[0].tolist()] * 2
    )


def test_letters_with_marks_stay_in_one_word() -> None:
    # Hindi "dog barks" has vowel signs, which are no letters; cut there, the two would share a fragment.
    assert tfidf_features(["कुत्ता", "किताब"]).shape == (2, 2)
    assert tfidf_features(["öffnet", "o\u0308ffnet"]).shape == (2, 1)  # composed and decomposed are one word


@pytest.mark.parametrize(
    ("text", "num_terms"),
    [
        ("犬が吠える", 4),  # four overlapping pairs of five characters
        ("雨", 1),  # a lone character is a term
        ("狗在叫 dog叫声", 4),  # 狗在, 在叫; dog and 叫声 part
        ("สุนัขเห่า", 8),  # Thai, nine characters
    ],
)
def test_scripts_without_blanks_give_pairs_of_characters(text: str, num_terms: int) -> None:
    assert tfidf_features([text]).shape == (1, num_terms)


def test_japanese_captions_of_one_thing_are_alike() -> None:
    dog, other_dog, rain = tfidf_features(["犬が吠えている", "大きな犬が吠えている", "雨が激しく降っている"])
    assert dog @ other_dog > 2 * (dog @ rain)


def test_the_same_captions_give_the_same_features() -> None:
    captions = [f"sound {number % 7} of thing {number % 5}" for number in range(40)]
    assert np.array_equal(tfidf_features(captions), tfidf_features(captions))


def test_label_features_are_multi_hot_of_unit_norm() -> None:
    # Labels bird, dog, rain: {dog} is (0, 1, 0); {rain, bird} is (1, 0, 1) / sqrt 2.
    half = 2**-0.5
    features = label_features([["dog"], ["rain", "bird"], ["dog", "dog"]])
    assert features == pytest.approx(np.array([[0, 1, 0], [half, 0, half], [0, 1, 0]]))
    assert features.dtype == np.float32


def test_label_groups_are_the_sets_of_labels() -> None:
    assert label_groups([["dog"], ["rain", "dog"], ["dog", "dog"], ["dog", "rain"], []]).tolist() == [0, 1, 0, 1, 2]
