"""The style sheet of a report: light and dark, from a phone to paper."""

STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--soft:#57606a;--rule:#d0d7de;--panel:#f6f8fa;--accent:#0a5ca8;
--s0:#0a5ca8;--s1:#b45309;--s2:#047857;--s3:#a21caf;--s4:#0e7490;--s5:#be123c;
--s6:#4d7c0f;--s7:#57534e;--l0:#c9d1d9;--l1:#7aa7d6;--l2:#2f6fb0;--l3:#0b2f57}
@media (prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e6edf3;--soft:#a3afbb;--rule:#38414b;
--panel:#181e25;--accent:#7cb7f2;--s0:#7cb7f2;--s1:#f0b35c;--s2:#5fd0a5;--s3:#e39af0;
--s4:#67d3e6;--s5:#ff8fa3;--s6:#b5d66b;--s7:#c4bfb9;--l0:#3b4552;--l1:#3f77b3;--l2:#7cb0e6;
--l3:#d5e7fb}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;color-scheme:light dark}
body{margin:0;background:var(--bg);color:var(--fg);line-height:1.5;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer,nav{max-width:72rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.5rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .25rem;padding-top:.75rem;border-top:1px solid var(--rule)}
h3{font-size:1.02rem;line-height:1.35;margin:0 0 .25rem}
p{margin:.25rem 0 .5rem}
a{color:var(--accent)}
.facts,.note,.good,.about,figcaption{color:var(--soft);font-size:.9rem}
.good b{color:var(--fg)}
.answer{list-style:none;margin:1rem 0;padding:1rem 1.1rem;background:var(--panel);
border-left:4px solid var(--accent);border-radius:4px;font-size:1.05rem}
.answer li{margin:.35rem 0;overflow-wrap:anywhere}
nav ul,.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.5rem 0;padding:0}
.legend{font-size:.85rem;margin:.25rem 0}
.legend li{display:flex;align-items:center;gap:.35rem;max-width:100%;overflow-wrap:anywhere;
overflow-y:clip}
.key{width:26px;height:12px;flex:none}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));
gap:1.75rem 2rem;align-items:start;margin-top:1rem}
.lists{grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}
.wide{grid-column:1/-1}
figure,.finding{margin:0;min-width:0}
svg.chart{display:block;width:100%;max-width:34rem;height:auto}
svg text{font-family:inherit;fill:var(--fg);font-size:12px}
svg .axis,svg .tick{fill:var(--soft)}
svg .name{font-size:13px}
.grid{stroke:var(--rule);stroke-width:1}
.level{stroke:var(--soft);stroke-width:2;stroke-dasharray:2 3}
.curve{fill:none;stroke-width:2}
.band{opacity:.18}
.stem{stroke-width:8;opacity:.25}
.dash1{stroke-dasharray:7 4}.dash2{stroke-dasharray:2 3}.dash3{stroke-dasharray:9 3 2 3}
.curve.s0,.stem.s0{stroke:var(--s0)}.curve.s1,.stem.s1{stroke:var(--s1)}
.curve.s2,.stem.s2{stroke:var(--s2)}.curve.s3,.stem.s3{stroke:var(--s3)}
.curve.s4,.stem.s4{stroke:var(--s4)}.curve.s5,.stem.s5{stroke:var(--s5)}
.curve.s6,.stem.s6{stroke:var(--s6)}.curve.s7,.stem.s7{stroke:var(--s7)}
.dot.s0,.band.s0{fill:var(--s0)}.dot.s1,.band.s1{fill:var(--s1)}.dot.s2,.band.s2{fill:var(--s2)}
.dot.s3,.band.s3{fill:var(--s3)}.dot.s4,.band.s4{fill:var(--s4)}.dot.s5,.band.s5{fill:var(--s5)}
.dot.s6,.band.s6{fill:var(--s6)}.dot.s7,.band.s7{fill:var(--s7)}
.of-data{fill:none;stroke:var(--soft);stroke-width:1}
.of-coreset{fill:var(--accent)}
.bar.level0{fill:var(--l0)}.bar.level1{fill:var(--l1)}.bar.level2{fill:var(--l2)}
.bar.level3{fill:var(--l3)}
.scroll{overflow-x:auto;margin:.5rem 0}
.scroll:focus-visible{outline:2px solid var(--accent)}
table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th{vertical-align:bottom;font-weight:600;white-space:normal}
th.t,td.t{text-align:left;max-width:24rem;overflow:hidden;text-overflow:ellipsis}
details{margin:.35rem 0;font-size:.9rem}
summary{cursor:pointer;color:var(--accent)}
pre{background:var(--panel);padding:.6rem .75rem;overflow-x:auto;font-size:.78rem;line-height:1.4;
border-radius:4px}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.92em}
.texts{list-style:none;margin:.5rem 0;padding:0}
.texts>li{padding:.5rem 0;border-top:1px solid var(--rule);overflow:hidden}
.meta{font-size:.82rem;color:var(--soft);overflow-wrap:anywhere}
.meta b{color:var(--fg)}
.text{margin:.15rem 0 0;font-size:.9rem;overflow-wrap:anywhere;unicode-bidi:plaintext}
.pair{display:grid;gap:.5rem 1.5rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,16rem),1fr))}
.empty{color:var(--soft);font-style:italic;padding:.75rem;border:1px dashed var(--rule);
border-radius:4px}
.mapbox{margin:.5rem 0;position:relative}
.mv{position:absolute;left:0;top:0;opacity:0;pointer-events:none}
.mapbox label,.tools button{display:inline-block;padding:.3rem .6rem;margin:.15rem .25rem .15rem 0;
border:1px solid var(--rule);border-radius:4px;background:var(--panel);color:var(--fg);font:inherit;
font-size:.85rem;cursor:pointer}
.ask{font-size:.85rem;margin-right:.5rem}
.mv:checked+label{background:var(--accent);color:var(--bg);border-color:var(--accent)}
.mv:focus-visible+label{outline:2px solid var(--fg);outline-offset:2px}
.pic{position:relative;border:1px solid var(--rule);border-radius:4px;overflow:hidden}
svg.map{display:block;width:100%;height:auto;max-height:80vh}
.dots{fill:none;stroke-linecap:round;stroke-width:3px;vector-effect:non-scaling-stroke;opacity:.6}
.dots.core{stroke:var(--fg);stroke-width:4.5px;opacity:.95;visibility:hidden}
#mv0:checked~.pic .c0,#mv1:checked~.pic .c1,#mv2:checked~.pic .c2,#mv3:checked~.pic .c3,
#mv4:checked~.pic .c4,#mv5:checked~.pic .c5{visibility:visible}
.g0{stroke:var(--s0)}.g1{stroke:var(--s1)}.g2{stroke:var(--s3)}.g3{stroke:var(--s2)}
.g4{stroke:var(--s4)}.g5{stroke:var(--s5)}.g6{stroke:var(--s7)}
.spot{stroke:none}.spot.g0{fill:var(--s0)}.spot.g1{fill:var(--s1)}.spot.g2{fill:var(--s3)}
.spot.g3{fill:var(--s2)}.spot.g4{fill:var(--s4)}.spot.g5{fill:var(--s5)}.spot.g6{fill:var(--s7)}
.core-key{fill:var(--fg)}
#tip{position:fixed;z-index:9;max-width:20rem;padding:.35rem .55rem;background:var(--fg);
color:var(--bg);border-radius:4px;font-size:.82rem;pointer-events:none;overflow-wrap:anywhere}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
white-space:nowrap}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.25rem 1rem;margin:.5rem 0;
font-size:.9rem}
dt{font-weight:600}dd{margin:0;color:var(--soft)}
footer{margin-top:3rem;padding-bottom:2rem;color:var(--soft);font-size:.85rem}
@media (max-width:30rem){.dots{stroke-width:2px}.dots.core{stroke-width:3px}
h1{font-size:1.3rem}.answer{font-size:1rem;padding:.75rem .85rem}}
@media print{:root{--bg:#fff;--fg:#000;--soft:#444;--rule:#bbb;--panel:#f4f4f4;--accent:#0a5ca8;
--s0:#0a5ca8;--s1:#b45309;--s2:#047857;--s3:#a21caf;--s4:#0e7490;--s5:#be123c;
--s6:#4d7c0f;--s7:#57534e;--l0:#c9d1d9;--l1:#7aa7d6;--l2:#2f6fb0;--l3:#0b2f57}
nav,.tools,details,#tip{display:none}
.finding,.texts>li{break-inside:avoid}h2,h3{break-after:avoid}
.scroll{overflow:visible}table{font-size:7.5pt}th,td{padding:.1rem .3rem}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
