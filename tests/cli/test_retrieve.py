import json

import numpy as np
import pytest

from clapkit.errors import EmbeddingError
from clapkit.index.table import EmbeddingTable, TableInfo, save_tables
from clapkit.steps.query_encoder import QueryEncoder


def test_hits_are_shown_with_rank_score_span_and_caption(fake_step, clapkit_call):
    fake_step("retrieve")
    result = clapkit_call("retrieve", "dog barking")
    assert result.exit_code == 0
    assert "“dog barking”" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if "toy/dog" in line]
    for cell in ("1", "0.710", "+2.3", "0.0 s–5.0 s", "A dog [barks]."):
        assert cell in line
    assert "Another." not in result.stdout


def test_a_caption_without_a_span_is_shown_too(fake_step, clapkit_call):
    step = fake_step("retrieve")
    nowhere = {"start_s": None, "end_s": None}
    give(step, nowhere | {"spans": [nowhere | {"score": 0.71}], "z_score": None})
    (line,) = [line for line in clapkit_call("retrieve", "q", "--target", "text").stdout.splitlines() if "toy/dog" in line]
    assert line.split() == ["1", "0.710", "toy/dog", "A", "dog", "[barks]."]


def give(step, *changes):
    """Let the step find its hit with changes."""
    hits = [step.result["results"][0]["hits"][0] | change for change in changes]
    step.result = step.result | {"results": [{"query": "q", "hits": hits}]}


def test_files_are_shown_with_all_their_spans_and_copies(fake_step, clapkit_call):
    step = fake_step("retrieve")
    spans = [{"start_s": 3.25, "end_s": 59.9, "score": 0.7}, {"start_s": 75.0, "end_s": 3723.4, "score": 0.6}]
    give(step, {"spans": spans, "also": ["/x/b.wav", "/x/c.wav"], "z_score": -0.04})
    out = " ".join(clapkit_call("retrieve", "q", "--group-by", "file", "--fold").stdout.split())
    for shown in ("3.2 s–59.9 s", "1:15–1:02:03", "toy/dog (and 2 more)", "-0.0"):
        assert shown in out


def test_the_kind_is_shown_where_there_are_two(fake_step, clapkit_call):
    step = fake_step("retrieve")
    give(step, {"modality": "text"})
    assert "kind" not in clapkit_call("retrieve", "q", "--target", "text").stdout
    give(step, {"modality": "audio"}, {"modality": "text", "rank": 2})
    out = clapkit_call("retrieve", "q", "--target", "both").stdout
    assert "kind" in out
    assert [word for word in out.split() if word in ("audio", "text")] == ["audio", "text"]


def test_ids_that_are_paths_are_shown_below_their_common_folder(fake_step, clapkit_call):
    step = fake_step("retrieve")
    give(step, {"id": "/my sounds/dogs/a.wav"}, {"id": "/my sounds/b.wav", "rank": 2})
    out = clapkit_call("retrieve", "q").stdout
    assert "“q” in /my sounds/" in out
    assert out.count("/my sounds") == 1
    assert "dogs/a.wav" in out.split()
    assert "b.wav" in out.split()


@pytest.mark.parametrize("other", ["toy/dog", "/else/b.wav"])
def test_ids_without_a_common_folder_are_shown_as_they_are(other, fake_step, clapkit_call):
    step = fake_step("retrieve")
    give(step, {"id": "/sounds/a.wav"}, {"id": other, "rank": 2})
    words = clapkit_call("retrieve", "q").stdout.split()
    assert "/sounds/a.wav" in words
    assert other in words


def test_no_column_of_captions_is_shown_where_there_are_none(fake_step, clapkit_call):
    step = fake_step("retrieve")
    give(step, {"captions": []})
    assert "caption" not in clapkit_call("retrieve", "q").stdout
    give(step, {"captions": []}, {"captions": ["A dog."], "rank": 2})
    assert "caption" in clapkit_call("retrieve", "q").stdout


def test_a_query_without_hits_says_so_and_shows_no_table(fake_step, clapkit_call):
    step = fake_step("retrieve")
    give(step)
    assert clapkit_call("retrieve", "q").stdout == "“q”: no hits\n"


def test_the_words_are_what_is_looked_for(fake_step, clapkit_call):
    step = fake_step("retrieve")
    clapkit_call("retrieve", "dog barking")
    clapkit_call(
        "retrieve", "dog barking", "rain", "-k", "3", "--where", "split == 'test'", "--audio", "a.wav", "--audio", "b.wav"
    )
    first, second = step.configs
    assert (first.query, first.k, first.target, first.index, first.min_score) == (("dog barking",), 10, "audio", "exact", None)
    assert (second.query, second.k, second.where) == (("dog barking", "rain"), 3, "split == 'test'")
    assert second.audio == ("a.wav", "b.wav")


def test_a_query_leaves_nothing_behind(fake_step, clapkit_call, workplace):
    step = fake_step("retrieve")
    result = clapkit_call("retrieve", "dog barking", "--json")
    assert json.loads(result.stdout) == step.result
    assert step.run_dirs == [None]
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("flags", [["--name", "x"], ["--run-dir", "runs/retrieve/x"], ["--name", "x", "--queries", "q.txt"]])
def test_a_named_query_or_many_from_a_file_leave_a_run(flags, fake_step, clapkit_call, workplace):
    step = fake_step("retrieve")
    assert clapkit_call("retrieve", "dog barking", *flags).exit_code == 0
    assert json.loads((workplace / "runs/retrieve/x/result.json").read_text()) == step.result


def test_copies_leave_a_run_that_says_what_was_copied(fake_step, clapkit_call, workplace):
    step = fake_step("retrieve")
    assert clapkit_call("retrieve", "dog barking", "--copy-to", "found").exit_code == 0
    (run_dir,) = step.run_dirs
    assert run_dir.path.parent.name == "retrieve"
    assert (run_dir.path / "result.json").is_file()


# Conversation -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(workplace):
    """Three vectors of nobody's model: sounds find each other, words find nothing."""
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    columns = {"captions": [()] * 3, "labels": [()] * 3, "splits": [None] * 3}
    paths, spans = [f"/sounds/{name}.wav" for name in "abc"], [(0.0, 1.0)] * 3
    table = EmbeddingTable.build("audio", vectors, ids=list("abc"), paths=paths, spans=spans, **columns)
    save_tables(workplace / "library", [table], TableInfo(2, "float32", {"audio": 3}, "", ""))
    return workplace / "library"


@pytest.fixture
def known_words(monkeypatch):
    """Words that have a vector without a model; others are refused."""
    vectors = {"left": np.array([1, 0]), "up": np.array([0, 1])}

    def embed(encoder, parts):
        unknown = [part.value for part in parts if part.value not in vectors]
        if unknown:
            raise EmbeddingError(f"unknown {unknown[0]!r}")
        return {part: vectors[part.value].astype(np.float32) for part in parts}

    monkeypatch.setattr(QueryEncoder, "__call__", embed)


def test_lines_are_answered_one_by_one(library, known_words, clapkit_call, workplace):
    done = clapkit_call("retrieve", "--interactive", "--embeddings", library, "--json", "-k", "1", stdin="left\n\n  up  \nleft")
    assert done.exit_code == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["results"][0]["query"], answer["results"][0]["hits"][0]["id"]) for answer in answers] == [
        *(("left", "a"), ("up", "c"), ("left", "a"))
    ]
    assert "words, @FILE" not in done.stderr  # nobody sits there
    assert sorted(path.name for path in workplace.iterdir()) == ["library"]


def test_answers_are_tables_for_people(library, known_words, clapkit_call):
    done = clapkit_call("retrieve", "--interactive", "--embeddings", library, "-k", "1", stdin="left\nup\n")
    assert [line.strip() for line in done.stdout.splitlines() if "“" in line] == ["“left”", "“up”"]


def test_a_line_that_cannot_be_answered_does_not_end_it(library, known_words, clapkit_call):
    lines = b"nonsense\n@\ncaf\xe9\n@no\xe9.wav\nup\n"
    done = clapkit_call("retrieve", "--interactive", "--embeddings", library, "--json", stdin=lines)
    assert done.exit_code == 0, done.exception
    assert len(done.stdout.splitlines()) == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [error.removeprefix("error: ").split(";")[0] for error in errors] == [
        *("unknown 'nonsense'", "@: names no file", r"query 'caf\udce9': holds signs that are no text"),
        r"unknown 'no\udce9.wav'",
    ]


def test_what_is_subtracted_holds_for_all_lines(library, known_words, clapkit_call):
    arguments = ("--minus", "up", "--minus-weight", "0.9")
    done = clapkit_call("retrieve", "--interactive", "--embeddings", library, "--json", *arguments, stdin="left\nleft\n")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == second
    assert first["results"][0]["query"] == "left − up"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["dog"], ["--queries", "q.txt"], ["--audio", "a.wav"], ["--like", "a"], ["--vectors", "q.npy"]),
        *(["--copy-to", "found"], ["--name", "x"], ["--run-dir", "x"]),
    ],
)
def test_a_conversation_asks_for_its_queries(library, clapkit_call, arguments, workplace):
    done = clapkit_call("retrieve", "--interactive", "--embeddings", library, *arguments, stdin="left\n")
    assert done.exit_code == 1
    assert done.stderr == ("error: --interactive: asks for its queries; leave out queries, --copy-to, --name and --run-dir\n")
    assert sorted(path.name for path in workplace.iterdir()) == ["library"]


def test_a_table_that_is_not_there_ends_it_at_once(clapkit_call, workplace):
    done = clapkit_call("retrieve", "--interactive", "--embeddings", "none", stdin="left\n")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "none" in done.stderr
