import tomllib
from pathlib import Path

from fedprofile.common.config import RunConfig
from fedprofile.common.config_docs import configuration_markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def sections(content, path=""):
    yield path, content
    for key, value in content.items():
        if isinstance(value, dict) and key != "event_weights":
            yield from sections(value, f"{path}.{key}" if path else key)


def test_the_document_is_up_to_date():
    assert DOCUMENT.read_text(encoding="utf-8") == configuration_markdown(), (
        "run: python -m fedprofile.common.config_docs > docs/configuration.md"
    )


def test_every_key_stands_in_its_section_with_its_default():
    text = configuration_markdown()
    parts = {part.partition("\n")[0]: part for part in text.split("## ")[1:]}
    complete = tomllib.loads(RunConfig().to_toml())
    for path, content in sections(complete):
        part = parts[f"`[{path}]`" if path else "Top level"]
        for key, value in content.items():
            if not isinstance(value, dict):
                assert f"| `{key}` |" in part
                assert str(value) in part or str(value).lower() in part or f'"{value}"' in part
    for key in (
        "seed",
        "validation_from",
        "delta",
        "sampling_probability",
        "event_weights",
        "text",
    ):
        assert f"| `{key}` |" in text


def test_ranges_and_choices_are_told():
    text = configuration_markdown()
    assert '| `split` | `"global-time"`, `"leave-one-out"`, `"none"` |' in text
    assert "| `epsilon` | number > 0 | `8.0` |" in text
    assert "| `delta` | number > 0 and < 1 | unset |" in text
    assert "| `test_from` | date | unset |" in text
    assert "| `event_weights` | table of numbers | `{}` |" in text
