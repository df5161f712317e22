"""Tables on terminals of any width, as Markdown, and on a phone's page; what is written, and when it is said that it can't."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from descend.lab.bench import page, run
from descend.lab.bench.recording import load
from descend.lab.bench.tables import answers, tables
from descend.lab.commands import app
from descend.lab.outcome import check_writable
from descend.lab.table import Table, markdown, plural
from helpers.recordings import fake


def printed(table: Table, width: int) -> str:
    text = io.StringIO()
    table.show(Console(file=text, width=width))
    return text.getvalue()


@pytest.mark.parametrize("width", (40, 80, 200))
@pytest.mark.parametrize("table", tables(fake()), ids=lambda table: table.title)
def test_tables_fit_any_terminal_and_lose_nothing(table: Table, width: int) -> None:
    text = printed(table, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for row in table.rows:
        assert all(cell in text for cell in row)


def test_columns_that_do_not_fit_come_below_with_the_names_again() -> None:
    table = Table("Widths", ["name", "first", "second"], [["adamw", "1" * 12, "2" * 12]])
    assert printed(table, 80).count("adamw") == 1
    assert printed(table, 24).count("adamw") == 2


def test_signs_of_markdown_are_words() -> None:
    assert markdown(["a_b", "c*"], [["x|y", "`k_m`"]]) == "| a\\_b | c\\* |\n| --- | ---: |\n| x\\|y | `k_m` |"


def test_one_is_no_plural() -> None:
    assert [plural(n, "seed") for n in (0, 1, 2, 1500)] == ["0 seeds", "1 seed", "2 seeds", "1 500 seeds"]
    assert plural(2, "process", "processes") == "2 processes"


def test_the_page_has_no_table_that_scrolls_sideways() -> None:
    html = page.html(fake())
    assert "overflow-x" not in html
    cells = sum(len(row) - 1 for table in tables(fake()) for row in table.rows)
    assert html.count("<td data-head=") == cells


def test_the_answer_comes_first() -> None:
    found = answers(fake())
    assert found[0].startswith("adamw, fused: 11.00 ms on ViT-S/16")
    assert "1.10 × the time that memory traffic alone would take" in found[0]
    many = fake()
    many.heats = many.heats[:1] * 7
    assert answers(many)[0].startswith(
        "ViT-S/16, 152 tensors, 22.05 M elements, float32: 7 optimizers, fused, from 11 ms"
    )


@pytest.mark.parametrize("option", ("--json", "--html", "--out"))
def test_what_cannot_be_written_is_said_before_work_starts(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "heat", None)
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "inner"
    result = CliRunner().invoke(app(), ["bench", "--models", "many_tiny", option, str(target)])
    assert result.exit_code == 2
    assert f"{option} is {target}, which cannot be written" in result.output.replace("\n", "")


def test_a_check_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("text")
    check_writable(json=tmp_path / "new", out=tmp_path / "kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (tmp_path / "kept").read_text() == "text"


def test_ctrl_c_keeps_the_heats_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = run.heat, list[Any]()

    def heat(case: run.Case, *given: Any) -> Any:
        if done:
            assert [heat.rule for heat in load(tmp_path / "b.json").heats] == ["adamw"]  # it is on disk already
            raise KeyboardInterrupt
        done.append(real(case, *given))
        return done[-1]

    monkeypatch.setattr(run, "heat", heat)
    options = ["--models", "many_tiny", "--executors", "loop", "--rounds", "1", "--peers", "none"]
    result = CliRunner().invoke(
        app(), ["bench", "--optimizers", "adamw,lion", *options, "--json", str(tmp_path / "b.json")]
    )
    assert result.exit_code == 130, result.output
    assert "Stopped; this is what was measured until then." in result.output
    assert load(tmp_path / "b.json").stopped
