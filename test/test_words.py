"""Text and names are plain technical English: none of the phrases below occurs where a user or contributor reads.

    python test/test_words.py

prints the phrases that are found, and their number per folder.
"""

import io
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The files that are checked, as patterns relative to the root.
CHECKED = (
    *("*.md", "*.rst", "*.cff", "*.toml", "*.cfg", "*.py", "Makefile", "package.xml", "constraints.txt"),
    *(".github/**/*", ".pre-commit-config.yaml", ".ci/*"),
    *("docs/*.md", "docs/*.py", "launch/*.py", "config/*", "examples/*.py", "benchmarks/*.py"),
    *("raymap3r_ros/**/*.py", "pip_ros/**/*.py", "pip_ros/**/*.txt", "pip_ros/**/*.xml"),
    "test/**/*.py",
)
# This test's list of phrases, and a layout that Foxglove writes.
EXCLUDED = ("test/test_words.py", "config/foxglove.json")
# Commands whose help is checked.
COMMANDS = (
    *("", "run", "convert", "render", "composite", "train", "train one_room", "train one_office", "evaluate"),
    *("evaluate synthetic", "evaluate simulated", "evaluate covariance", "evaluate tum", "demo", "replay", "doctor"),
    *("weights", "weights fetch", "weights import"),
)

# Phrase, as a regular expression for whole words, and what to write instead.
PHRASES = {
    r"asks|asked|asking": "queries, requests",
    r"says|said": "reports, contains",
    r"tells|told|telling": "reports, contains",
    r"knows|knew": "contains, has; or: is known",
    r"believes|believed": "estimates, predicts, assumes",
    r"answers|answered": "returns, predicts, responds",
    r"looks(?! up\b)": "reads, points, appears",
    r"speaks|hears|heard": "publishes, receives",
    r"nobody|somebody|anybody|whoever": "the subscriber, the caller, the user; or the passive",
    r"who (?:asks|listens|comes|wants|has|looks)": "name the subscriber, the caller, the user",
    r"anew": "again",
    r"so[- ]many(?:-th)?": "N, every N-th",
    r"goes on|go on|went on": "continues",
    r"at work": "running",
    r"takes? back|taken back|took back": "destroys, unsubscribes",
    r"in order that": "so that",
    r"foretold|foretells": "predicted",
    r"where there (?:is|are|was|were) none": "if none exists",
    r"that of": "repeat the noun",
    r"(?:[,;:.(] ?)(?:of which|what it|for those who)": "start a new sentence",
    r"became of": "accounted for",
    r"what moves": "motion, dynamic pixels, moving objects",
    r"(?:shall|should) not pass for": "do not publish as",
    r"made nothing|came to nothing": "failed",
    r"of (?:its|one's|your|his|their|our) own accord": "itself",
    r"theirs": "repeat the noun",
    r"stillness": "staticness",
    r"starts? anew|began anew": "is reset",
    r"joined to the old": "aligned",
    r"listeners?|who listens": "subscriber",
    r"surprises?": "innovation",
    r"asked by rays": "predicted from rays",
    r"squint": "misalignment",
}
# The public contract, and words with another meaning: removed from the text before the search.
ALLOWED = (
    r"TransformListener|transform_listener",
    r"listens on port",
)
_SEARCH = re.compile(
    "|".join(rf"(?P<p{number}>(?<!\w)(?:{phrase})(?!\w))" for number, phrase in enumerate(PHRASES)), re.IGNORECASE
)
_ALLOWED = re.compile("|".join(ALLOWED))
_ADVICE = list(PHRASES.values())


def phrases_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, phrase and advice for each phrase in a text, also for one that is broken over two lines."""
    text = _ALLOWED.sub(lambda match: "_" * len(match[0]), text)
    # A line break, with the sign of a comment at the start of the next line, is a space within a phrase.
    joined = re.sub(r"\n[ \t]*(?:[#>*]+ )?", lambda match: " " + "\0" * (len(match[0]) - 1), text)
    flat, positions = [], []
    for position, character in enumerate(joined):
        if character != "\0":
            flat.append(character)
            positions.append(position)
    for match in _SEARCH.finditer("".join(flat)):
        line = text.count("\n", 0, positions[match.start()]) + 1
        yield line, " ".join(match[0].split()), _ADVICE[int(match.lastgroup[1:])]


def files(patterns: tuple[str, ...], excluded: tuple[str, ...]) -> list[Path]:
    """Text files of the checkout that match one of the patterns, sorted."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.relative_to(ROOT).as_posix() not in excluded)


def hits(patterns: tuple[str, ...], excluded: tuple[str, ...]) -> list[str]:
    """One line for each phrase in the files: file, line, phrase, advice."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}; write: {advice}"
        for path in files(patterns, excluded)
        for line, phrase, advice in phrases_in(path.read_text())
    ]


def help_text(command: str) -> str:
    """The output of `raymap3r COMMAND --help`."""
    from raymap3r_ros import cli

    output = io.StringIO()
    with redirect_stdout(output), pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    return output.getvalue()


def test_files_are_found():
    assert len(files(CHECKED, EXCLUDED)) > 40


def test_no_phrase_in_the_files():
    found = hits(CHECKED, EXCLUDED)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_phrase_in_the_help(command: str):
    found = [f"{phrase!r}; write: {advice}" for _, phrase, advice in phrases_in(help_text(command))]
    assert not found, "\n" + "\n".join(found)


def test_phrases_are_found_as_whole_words():
    assert [phrase for _, phrase, _ in phrases_in("The node asks for it; tasks and masks do not.")] == ["asks"]
    assert [line for line, _, _ in phrases_in("one\n# it goes\n# on, and starts\n# anew")] == [2, 3]
    assert not list(phrases_in("It looks up the transform; a TransformListener exists; the answer is known."))


def main() -> int:
    """Print all hits and their number per folder."""
    found = hits(CHECKED, EXCLUDED)
    print(*found, sep="\n")
    folders = Counter(os.path.dirname(hit.partition(":")[0]) or "." for hit in found)
    for folder, number in sorted(folders.items()):
        print(f"{number:5d}  {folder}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
