"""The style sheet of the report; light and dark by the reader's setting."""

STYLE = """
:root{--ink:#1b1f24;--soft:#667080;--line:#e3e6ea;--paper:#fff;--card:#f7f8fa;--up:#15803d;--down:#b42318;--accent:#3156d3}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaee;--soft:#98a1ae;--line:#2d333b;--paper:#14171b;--card:#1c2026;
--up:#4ade80;--down:#f97066;--accent:#8ba4ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:40px 20px 60px}
h1{margin:0;font-size:30px;letter-spacing:-.02em}
h2{font-size:19px;margin:44px 0 12px}h3{font-size:16px;margin:26px 0 10px}
h4{margin:0 0 8px;font-size:13px;color:var(--soft);font-weight:600}
small{color:var(--soft);font-weight:400;font-size:12px}
header p{color:var(--soft);max-width:640px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin-top:22px}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tiles b{display:block;font-size:23px;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:13px}
section{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child{text-align:left}thead th{color:var(--soft);font-weight:600;font-size:12.5px}
th.words,td.words{text-align:left;min-width:230px}td.words small{display:block}
tr.total th,tr.total td{font-weight:700;border-bottom:0}
.up{color:var(--up)}.down{color:var(--down)}.same{color:var(--soft)}
svg{width:100%;height:auto;margin-top:20px}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--line)}svg .band{fill:var(--accent);opacity:.13}
svg .meanline{stroke:var(--accent);stroke-width:3}svg circle.mean,svg text.mean{fill:var(--accent);font-weight:700}
article{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin-bottom:12px}
.prompt{margin:0 0 12px;font-weight:600}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:20px;margin-top:12px}
@media (max-width:640px){.pair{grid-template-columns:1fr}}
img,video{border-radius:6px;display:block;background:#000;image-rendering:pixelated;border:1px solid var(--line)}
audio{width:100%;max-width:280px;display:block}
.text{margin:8px 0}.verdict{margin:8px 0 0;font-size:13px;font-weight:600}
.critique{margin:10px 0 0;padding-left:12px;border-left:3px solid var(--accent);font-style:italic}
code{background:var(--card);padding:1px 4px;border-radius:4px}
footer{color:var(--soft);font-size:13.5px}footer h2{color:var(--ink)}
"""
