import pytest

from clapkit.config import EvalConfig
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.steps.evaluation.prompts import NAMED, read_lines, read_prompts, spell


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "prompts.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def read_file(path):
    return read_prompts(EvalConfig(prompt_set=path))


@pytest.mark.parametrize("name", NAMED)
def test_every_named_set_has_distinct_templates_with_one_place(name):
    found = read_prompts(EvalConfig(prompt_set=name))
    assert found.name == name
    assert len(set(found.templates)) == len(found.templates) >= 1
    assert all(template.count("{}") == 1 for template in found.templates)


def test_sets_of_the_field_are_those_that_were_published():
    assert NAMED["laion"].templates == ("This is a sound of {}.",)
    assert NAMED["supclap"].templates == ("This is a sound of {}",)  # without the full stop
    assert NAMED["msclap"].spelling == "lower"
    assert NAMED["maeb"].spelling == NAMED["cacophony"].spelling == "raw"
    assert NAMED["labels"].templates == ("{}",)


def test_templates_of_the_command_line_are_an_ensemble_without_a_name():
    found = read_prompts(EvalConfig(prompt=("a {}", "{} here")))
    assert found.name is None
    assert found.templates == ("a {}", "{} here")


def test_a_file_has_one_template_a_line_and_comments(write):
    assert read_file(write("\ufeff# ours\n\n a {} \n{} is heard # 1\n")).templates == ("a {}", "{} is heard # 1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {}\nno place\n", r"prompts.txt, line 2: 'no place': has 0 places"),
        ("# two\n{} and {}\n", r"prompts.txt, line 2: '{} and {}': has 2 places"),
        ("a {}\n\na {}\n", r"prompts.txt, line 3: 'a {}': comes twice"),
        ("# nothing\n", r"prompts.txt: is empty, expected a text file with one template a line"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(write, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_file(write(text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match=r"bad.txt: cannot be read"):
        read_file(str(tmp_path / "bad.txt"))


def test_prompts_of_the_command_line_are_checked_too():
    with pytest.raises(ConfigError, match="--prompt 'none': has 0 places"):
        read_prompts(EvalConfig(prompt=("none",)))
    with pytest.raises(ConfigError, match="--prompt 'a {}': comes twice"):
        read_prompts(EvalConfig(prompt=("a {}", "a {}")))


def test_prompts_and_a_set_cannot_both_be_meant():
    with pytest.raises(ConfigError, match="--prompt 'a {}' and --prompt-set laion: both name the prompts"):
        read_prompts(EvalConfig(prompt=("a {}",), prompt_set="laion"))


def test_an_unknown_set_is_answered_with_the_closest():
    with pytest.raises(UnknownNameError, match="did you mean 'laion'.*or a text file with one template a line"):
        read_prompts(EvalConfig(prompt_set="lion"))


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("blanks", "Gunshot, and gunfire"),
        ("lower", "gunshot, and gunfire"),
        ("clean", "gunshot and gunfire"),
        ("raw", " Gunshot,_and__gunfire"),
    ],
)
def test_spellings_of_a_class(spelling, expected):
    assert spell(" Gunshot,_and__gunfire", spelling) == expected


def test_lines_know_their_place(tmp_path):
    (tmp_path / "a.txt").write_text("# x\none\n\ntwo\n")
    found = read_lines(tmp_path / "a.txt", flag="--f", expected="lines")
    assert [(place.rpartition(", ")[2], line) for place, line in found] == [("line 2", "one"), ("line 4", "two")]
