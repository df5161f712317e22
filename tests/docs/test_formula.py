"""Formulae of docstrings become MathML that says the same, and the site brings the font that it is drawn in."""

from __future__ import annotations

import re
import unicodedata
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the site's pictures need matplotlib, which descend[lab] has")
import formula  # noqa: E402
import make_site  # noqa: E402


def symbols(text: str) -> str:
    """Letters and digits in their order, without their places."""
    return "".join(each for each in unicodedata.normalize("NFKD", text) if each.isalnum())


def drawn(written: str) -> str:
    """The MathML of one formula, without attributes."""
    return re.sub(r'(?<=\w) \w+="[^"]*"', "", formula.draw(formula.parse(unicodedata.normalize("NFD", written))))


@pytest.mark.parametrize("name", make_site.optimizers())
def test_every_line_of_every_optimizer_keeps_its_symbols(name: str) -> None:
    text = make_site.sections(make_site.optimizers()[name])[""]
    lines = [
        line for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", text) if "←" in block for line in block.split("\n")
    ]
    assert lines
    for written in filter(str.strip, lines):
        html = formula.line(written)
        ElementTree.fromstring(f"<div>{html}</div>")
        assert "<math" in html
        assert symbols(unescape(re.sub(r"<mn>3</mn></mroot>|<[^>]*>", "", html))) == symbols(written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("β₂v", "<mrow><msub>β 2</msub>v</mrow>"),
        ("a/b·c", "<mrow><mfrac>a b</mfrac>·c</mrow>"),
        ("a·b/(c + d)", "<mrow>a·<mfrac>b <mrow>c+d</mrow></mfrac></mrow>"),
        ("(a/b)/c", "<mfrac><mrow>a/b</mrow>c</mfrac>"),
        ("√v̂ + eps", "<mrow><msqrt><mover>v^</mover></msqrt>+eps</mrow>"),
        ("√max(a, b)", "<msqrt><mrow>max<mrow>(<mrow>a,b</mrow>)</mrow></mrow></msqrt>"),
        ("Q_Lᵀ", "<msubsup>Q L T</msubsup>"),
        ("G'²", "<msup>G<mrow>′2</mrow></msup>"),
        ("x^(t·k)", "<msup>x<mrow>t·k</mrow></msup>"),
        ("‖s‖₁/Σ w", "<mfrac><msub><mrow>‖s‖</mrow>1</msub><mrow>Σw</mrow></mfrac>"),
    ],
)
def test_marks_bind_as_the_notation_says(written: str, expected: str) -> None:
    tree = formula.parse(unicodedata.normalize("NFD", written))
    leaves = re.sub(r"</?(mi|mn|mo)\b[^>]*>", "", re.sub(r'(?<=\w) \w+="[^"]*"', "", formula.draw(tree)))
    assert leaves.replace("⋅", "·") == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("u = b, or g + momentum·b with nesterov", "□ or □ with nesterov"),
        ("O = f(U) ≈ the orthogonal matrix nearest to U", "□the orthogonal matrix nearest to □"),
        ("with centered, else A = 0", "with centered, else □"),
        ("every k steps:  θ ← φ", "every □ steps: □"),
    ],
)
def test_words_stay_words(written: str, words: str) -> None:
    assert re.sub(r"<math.*?</math>", "□", re.sub(r"</?span[^>]*>", "", formula.line(written))) == words


@pytest.mark.parametrize("written", ["(a", "a)", "[a)", "|a", "a·", "a/", "a # b"])
def test_what_is_no_formula_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(written))):
        formula.parse(written)


def test_the_font_has_every_sign_that_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("ziamath", reason="the font comes with ziamath, which descend[docs] has")
    from fontTools.ttLib import TTFont

    formula.font(tmp_path / "formula.woff")
    has = TTFont(tmp_path / "formula.woff").getBestCmap()
    pages = (make_site.prose(make_site.sections(kind)[""]) for kind in make_site.optimizers().values())
    signs = {sign for page in pages for leaf in re.findall(r"<m[ino][^>]*>([^<]*)<", page) for sign in unescape(leaf)}
    assert {sign for sign in signs if ord(sign) not in has} == set()
