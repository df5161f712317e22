"""The style sheet of a report: a phone first, light and dark as the reader has it."""

from __future__ import annotations

STYLE = """\
:root {
  --page: #fbfbfa; --card: #fff; --ink: #1c1d20; --soft: #63666e; --grid: #dcdde0; --line: #e6e7e9;
  --c0: #2563eb; --c1: #e07a10; --c2: #15803d; --c3: #dc2626; --c4: #7c3aed;
  --c5: #0e9aa7; --c6: #d6308f; --c7: #8a5a2b; --c8: #6b7280; --c9: #858a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131417; --card: #1b1d21; --ink: #ececee; --soft: #a0a3ab; --grid: #34373d; --line: #2b2d33;
    --c0: #6ba4ff; --c1: #ffa24d; --c2: #4fd07f; --c3: #ff7b7b; --c4: #b395ff;
    --c5: #3fd6e0; --c6: #ff86c4; --c7: #d3a06b; --c8: #a3a9b5; --c9: #d3d64a;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
.kind { margin: 0; color: var(--soft); font-size: .85rem; letter-spacing: .02em }
h1 { margin: .1rem 0 .6rem; font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.15; letter-spacing: -.015em }
h2 { margin: 2.6rem 0 .8rem; font-size: 1.25rem; letter-spacing: -.01em }
.lead { max-width: 46rem; margin: 0 0 1.4rem }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .5rem .3rem; text-align: right; vertical-align: top; border-top: 1px solid var(--line) }
th:first-child { text-align: left }
thead th { border: 0; color: var(--soft); font-weight: 500; font-size: .78rem; vertical-align: bottom }
tbody th { position: relative; font-weight: inherit; padding-left: 1rem }
tbody th i { position: absolute; left: 0; top: .95rem }
tbody th i, .keys i {
  display: inline-block; width: .6rem; height: .6rem; margin-right: .4rem; border-radius: 50%; background: currentColor;
}
i.ring { background: none !important; border: 2px solid currentColor }
td b, th b { font-weight: 600; white-space: nowrap }
small { display: block; color: var(--soft); font-size: .76rem; line-height: 1.3; white-space: nowrap }
tbody tr:first-child td:nth-child(2) b { color: var(--c2) }
.base i { visibility: hidden }
.base b { font-weight: 400; color: var(--soft) }
.failed { margin: .6rem 0 0; color: var(--c3); font-size: .9rem; overflow-wrap: anywhere }
.keys { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: 1rem }
.keys label {
  display: inline-flex; align-items: center; padding: .3rem .7rem; border: 1px solid var(--line); border-radius: 2rem;
  background: var(--card); font-size: .85rem; cursor: pointer; user-select: none;
}
.keys input { position: absolute; opacity: 0; width: 0 }
.keys label:has(input:not(:checked)) { opacity: .45; text-decoration: line-through }
.keys label:has(input:focus-visible) { outline: 2px solid var(--c0) }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
figure {
  margin: 0; padding: .8rem .6rem .4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .7rem;
}
figcaption { padding: 0 .3rem .3rem; font-size: .8rem; line-height: 1.35; color: var(--soft) }
figcaption b { display: block; font-size: .95rem; color: var(--ink) }
svg { display: block; width: 100%; max-width: 36rem; height: auto; margin: 0 auto; color: var(--soft) }
ul { max-width: 46rem; padding-left: 1.1rem }
li { margin-bottom: .5rem }
.plain { max-width: 46rem; font-size: .85rem }
.plain tbody small { display: block; min-width: 0; text-align: right }
.plain th, .plain td { padding: .3rem .5rem }
.plain small { white-space: normal !important }
.plain tr th:first-child { padding-left: 0 }
details { max-width: 46rem; margin-top: .8rem }
summary { cursor: pointer }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; font-size: .85rem }
dt { color: var(--soft) }
dd { margin: 0 }
pre {
  margin: .5rem 0; padding: .7rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere;
}
.note { color: var(--soft); font-size: .85rem }
@media (max-width: 30rem) {
  table { font-size: .86rem }
  th, td { padding: .45rem .15rem }
  tbody th { padding-left: .9rem }
  tbody th i { top: .85rem }
  thead th { font-size: .72rem }
  small { font-size: .69rem }
  tbody th b { white-space: normal }
}
@media (min-width: 46rem) {
  th, td { padding: .45rem .8rem }
  thead th:first-child { padding-left: 0 }
  tbody td b, tbody th b { margin-right: .6rem }
  tbody small { display: inline-block; font-size: .82rem }
  tbody td small { min-width: 5.6em; text-align: left }
}
"""
