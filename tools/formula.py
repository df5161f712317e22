"""Formulae of docstrings as HTML: MathML, which browsers draw without a library, and the words between.

The notation is that of the docstrings' update sections: ``v ← β₂v + (1−β₂)g²``. Factors without a space between them
are multiplied, ``/`` divides the factors on its left up to a ``·``, and ``√`` and ``^`` take one factor. A name of
several letters is one symbol, ``Q_L`` is Q with the index L. Words may stand between; two spaces begin a remark.
"""

from __future__ import annotations

import re
import unicodedata
from importlib import resources
from pathlib import Path
from typing import Any

TOKEN = re.compile(
    r"""(?P<space>\s+(?![\s/]))
    | (?P<number>\d+(?:\.\d+)?|½)
    | (?P<index>_[A-Z](?![A-Za-z0-9_]))
    | (?P<name>[A-Z](?=_[A-Z](?![A-Za-z0-9_]))|[A-Za-z][A-Za-z0-9_]*|[α-ω])
    | (?P<hat>\u0302)
    | (?P<low>[₀-₉₊ₜᵢⱼ]+)
    | (?P<high>[⁰¹²³⁴-⁹⁻ᵗʳᵀ']+)
    | (?P<power>\^)
    | (?P<root>[√∛])
    | (?P<prefix>[Σ∏∂±]\s?)
    | (?P<open>[(\[{⟨])
    | (?P<close>[)\]}⟩])
    | (?P<bar>[|‖])
    | (?P<times>·)
    | (?P<over>\s?/\s?)
    | (?P<sign>[←=<>≈+−×,])
    """,
    re.VERBOSE,
)
STOPS = ",;:"
OPERATOR = re.compile(r"[←=<>≈+−/Σ∏]")
WORD = re.compile(r"""["(]?(?![A-Z]_)[A-Za-z][A-Za-z_-]+(?:'s)?[")]?|a|\d+(?:\.\d+)?""")
PAIRS = {"(": ")", "[": "]", "{": "}", "⟨": "⟩", "|": "|", "‖": "‖"}
TIGHT, UPRIGHT, SAME_SIZE = ('lspace="0"', 'rspace="0"'), ('mathvariant="normal"',), ('stretchy="false"',)
#: The kind of an expression, and its parts, which are expressions or text.
Tree = tuple[Any, ...]


def block(text: str) -> str:
    """The lines of an update section as one block of HTML."""
    lines = "\n".join(f"<div>{line(each)}</div>" for each in text.splitlines() if each.strip())
    return f'<div class="formula">\n{lines}\n</div>'


def line(text: str) -> str:
    """One line: formulae, after a comma more of them, else a remark."""
    parts = re.split(r"\s{2,}", unicodedata.normalize("NFD", text.strip()))
    kinds = ["", *("" if part.endswith(",") else ' class="remark"' for part in parts[:-1])]
    return " ".join(f"<span{kind}>{mixed(part)}</span>" for kind, part in zip(kinds, parts, strict=True))


def mixed(text: str) -> str:
    """Words as they are, and what stands between them as mathematics; a stop ends a formula."""
    chunks = _chunks(text)
    out, formula = "", ""
    for i, chunk in enumerate(chunks):
        if _is_word(chunks, i):
            out += f"{chunk} "
            continue
        formula += f"{chunk} "
        if chunk[-1] in STOPS or i + 1 == len(chunks) or _is_word(chunks, i + 1):
            inner = formula.rstrip(f"{STOPS} ")
            stop = formula[len(inner) :].rstrip()
            end = f"<mtext>{stop}</mtext>" if stop else ""
            space = "" if OPERATOR.fullmatch(chunk) else " "
            out += f'<math displaystyle="true">{draw(parse(inner))}{end}</math>{space}'
            formula = ""
    return out.rstrip()


def _chunks(text: str) -> list[str]:
    """What spaces outside of brackets separate."""
    chunks, closing = [""], [""]
    for character in text:
        if character == closing[-1]:
            closing.pop()
        elif character in PAIRS:
            closing.append(PAIRS[character])
        if character == " " and len(closing) == 1:
            chunks.append("")
        else:
            chunks[-1] += character
    return chunks


def _is_word(chunks: list[str], i: int) -> bool:
    """Whether a chunk is a word of a sentence: of letters, and no operand unless another word follows."""
    before, chunk, after = "".join(chunks[:i][-1:]), chunks[i], "".join(chunks[i + 1 :][:1])
    bare = chunk.rstrip(STOPS)
    if not WORD.fullmatch(bare):
        return False
    phrase = re.fullmatch("[A-Za-z-]{2,} [A-Za-z-]{2,}", f"{chunk} {after.rstrip(STOPS)}")
    operand = OPERATOR.fullmatch(before) or (bare == chunk and OPERATOR.fullmatch(after))
    return bool(phrase or not operand)


# --------------------------------------------------------------------------------------------------------------- reading


def parse(text: str) -> Tree:
    """The tree of a formula."""
    tokens: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        found = TOKEN.match(text, place)
        if not found or not found.lastgroup:
            raise ValueError(f"no notation of formulae: {text[place]!r} in {text!r}")
        tokens.append((found.lastgroup, found[0].strip()))
        place = found.end()
    reader = _Reader(text, tokens)
    tree = reader.row("")
    reader.take("end")
    return tree


class _Reader:
    """Recursive descent: each method reads what it is named after and returns its tree."""

    def __init__(self, text: str, tokens: list[tuple[str, str]]) -> None:
        self.text = text
        self.tokens = [*tokens, ("end", "")]
        self.at = 0

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    def take(self, *kinds: str) -> str:
        kind, token = self.tokens[self.at]
        if kind not in kinds:
            raise ValueError(f"expected {' or '.join(kinds)}, got {token!r} as token {self.at} of {self.text!r}")
        self.at += 1
        return token

    def row(self, closing: str) -> Tree:
        """Terms with signs and spaces between, up to what closes."""
        found: list[Tree] = []
        while self.kind not in ("close", "end") and self.tokens[self.at] != ("bar", closing):
            if self.kind == "sign":
                found.append(("mo", self.take("sign")))
            elif self.kind == "space":
                self.take("space")
                if found[-1][0] != "mo" and self.kind != "sign":
                    found.append(("mspace",))
            else:
                found.append(self.term(closing))
        return "row", *found

    def term(self, closing: str) -> Tree:
        """Products and quotients."""
        found = [self.factors(closing)]
        while self.kind in ("times", "over"):
            if self.take("times", "over") == "·":
                found += [("mo", "⋅"), self.factors(closing)]
            else:
                found.append(("fraction", found.pop(), self.factors(closing)))
        return "row", *found

    def factors(self, closing: str) -> Tree:
        """Factors with nothing between."""
        found = [self.factor()]
        begins = ("number", "name", "root", "prefix", "open", "bar")
        while self.kind in begins and self.tokens[self.at] != ("bar", closing):
            found.append(self.factor())
        return "row", *found

    def factor(self) -> Tree:
        """A root, a prefix and its operand, or a symbol or a pair of brackets with what hangs on it."""
        if self.kind == "root":
            sign, of = self.take("root"), self.factor()
            function = of[0] == "mi" and len(of[1]) > 1 and self.kind == "open"
            return "root", sign, ("row", of, self.factor()) if function else of
        if self.kind == "prefix":
            return "row", ("mo", self.take("prefix")), self.factor()
        found: Tree
        if self.kind in ("open", "bar"):
            opening = self.take("open", "bar")
            inner = self.row(PAIRS[opening])
            ends = self.take("bar" if PAIRS[opening] == opening else "close")
            if ends != PAIRS[opening]:
                raise ValueError(f"{opening!r} is closed by {ends!r} in {self.text!r}")
            found = "brackets", opening, inner, ends
        elif self.kind == "number":
            found = "mn", self.take("number")
        else:
            found = "mi", self.take("name")
        if self.kind == "hat":
            self.take("hat")
            found = "hat", found
        low = _small(self.take("low", "index").lstrip("_")) if self.kind in ("low", "index") else ()
        high = _small(self.take("high")) if self.kind == "high" else ()
        if self.kind == "power":
            self.take("power")
            high = ("row", *high, _inside(self.factor()))
        return ("scripts", found, low, high) if low or high else found


def _small(text: str) -> Tree:
    """What is written below or above, letter by letter."""
    found: list[Tree] = []
    for each in unicodedata.normalize("NFKC", text).replace("'", "′"):
        if each.isalnum():
            found.append(("mn", each) if each.isdigit() else ("mi", each, *UPRIGHT[each != "T" :]))
        else:
            found.append(("mo", each, *TIGHT))
    return "row", *found


def _inside(tree: Tree) -> Tree:
    """A tree without the brackets around all of it."""
    while tree[0] == "row" and len(tree) == 2:
        tree = tree[1]
    return tree[2] if tree[0] == "brackets" and tree[1] in "([" else tree


def _tall(tree: Tree) -> bool:
    """Whether there is a fraction in it."""
    return tree[0] == "fraction" or any(_tall(part) for part in tree if isinstance(part, tuple) and part)


# --------------------------------------------------------------------------------------------------------------- drawing


def draw(tree: Tree, small: bool = False) -> str:
    """A tree as one element of MathML; where it is small, fractions have a slash."""
    kind, *parts = tree
    if kind in ("mi", "mn", "mo"):
        how = "".join(f" {attribute}" for attribute in parts[1:])
        return f"<{kind}{how}>{parts[0].replace('<', '&lt;').replace('>', '&gt;')}</{kind}>"
    if kind == "mspace":
        return '<mspace width="0.3em"/>'
    if kind == "fraction" and small:
        return draw(("row", parts[0], ("mo", "/", *TIGHT), parts[1]), small)
    if kind == "fraction":
        return f"<mfrac>{draw(_inside(parts[0]), True)}{draw(_inside(parts[1]), True)}</mfrac>"
    if kind == "root":
        of = draw(_inside(parts[1]), small)
        return f"<msqrt>{of}</msqrt>" if parts[0] == "√" else f"<mroot>{of}<mn>3</mn></mroot>"
    if kind == "brackets":
        opening, inner, closing = parts
        size = () if not small and _tall(inner) else SAME_SIZE
        return draw(("row", ("mo", opening, *size), inner, ("mo", closing, *size)), small)
    if kind == "hat":
        return f'<mover accent="true">{draw(parts[0])}{draw(("mo", "^", *SAME_SIZE))}</mover>'
    if kind == "scripts":
        base, low, high = parts[0], *(draw(part, True) if part else "" for part in parts[1:])
        name = "msubsup" if low and high else "msub" if low else "msup"
        return f"<{name}>{draw(base, small)}{low}{high}</{name}>"
    drawn = [draw(part, small) for part in parts]
    return drawn[0] if len(drawn) == 1 else f"<mrow>{''.join(drawn)}</mrow>"


# ------------------------------------------------------------------------------------------------------------------ font


def font(target: Path) -> None:
    """Write the part of STIX Two Math that formulae need, as a web font: systems without such a font draw them badly."""
    from fontTools import subset

    options = subset.Options(flavor=target.suffix[1:], layout_features=["*"], name_IDs=["*"])
    with resources.as_file(resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf") as whole:
        part = subset.load_font(whole, options)
    letters = [*range(0x20, 0x7F), *range(0x391, 0x3CA), *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=letters, text="ℎ∂½⋅×±←→≈≤≥−√∛∏Σ⟨⟩‖′")
    subsetter.subset(part)
    _narrow_roots(part)
    subset.save_font(part, target, options)


def _narrow_roots(part: Any) -> None:
    """Make large radical signs as wide as the small one: Chromium keeps room for the widest after each root."""
    variants = part["MATH"].table.MathVariants
    sign = part.getBestCmap()[ord("√")]
    made = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(sign)]
    made.GlyphAssembly = None
    width, widths = part["hmtx"][sign][0], part["hmtx"].metrics
    for name in (record.VariantGlyph for record in made.MathGlyphVariantRecord):
        advance, bearing = widths[name]
        part["glyf"][name].coordinates.scale((width / advance, 1))
        part["glyf"][name].recalcBounds(part["glyf"])
        widths[name] = width, round(bearing * width / advance)
