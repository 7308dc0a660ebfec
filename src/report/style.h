// The page's style sheet: colours for light and dark, one column on a phone.
#pragma once

namespace spear {

inline constexpr const char* kReportStyle = R"css(
:root{color-scheme:light dark;--page:#f9f9f7;--surface:#fff;--ink:#0b0b0b;--ink2:#52514e;--muted:#7d7b75;--line:#e1e0d9;
--border:rgba(11,11,11,.1);--accent:#2a78d6;--orange:#d9591f;--violet:#4a3aa7;--grey:#8b8982;--good:#0b7a1e;--bad:#c02f2f;
--wash:#eef4fc;--heat:42,120,214;--heat2:235,104,52;--cell-ink:#fff}
@media(prefers-color-scheme:dark){:root{--page:#0d0d0d;--surface:#1a1a19;--ink:#fff;--ink2:#c3c2b7;--muted:#98968e;
--line:#2f2f2c;--border:rgba(255,255,255,.11);--accent:#4d98ee;--orange:#ec7a45;--violet:#a093ec;--grey:#8b8982;--good:#3fbf52;
--bad:#ef6b6b;--wash:#16222f;--heat:77,152,238;--heat2:236,122,69;--cell-ink:#0d0d0d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.01em;margin:0 0 6px}
h2{font-size:19px;margin:0 0 4px}
h3{font-size:15px;margin:0 0 8px}
.meta,.lead,figcaption small,.note{color:var(--ink2)}
.meta{margin:0;font-size:14px}
.lead{margin:0 0 16px;max-width:76ch;font-size:15px}
.verdict{font-size:20px;line-height:1.45;max-width:62ch;margin:22px 0 0}
.verdict+.findings{margin:14px 0 0;padding:0;list-style:none;max-width:84ch}
.findings li{padding-left:26px;position:relative;margin:4px 0}
.findings li::before{position:absolute;left:0;font-weight:700}
.findings .good::before{content:"\2713";color:var(--good)}
.findings .bad::before{content:"!";color:var(--bad);left:5px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px;margin:26px 0 0}
.tile,section{background:var(--surface);border:1px solid var(--border);border-radius:10px}
.tile{padding:14px 18px}
.tile b{display:block;font-size:30px;line-height:1.15;font-weight:650;letter-spacing:-.02em}
.tile span{font-size:14px;color:var(--ink2)}
.tile small{display:block;color:var(--muted);font-size:13px}
section{padding:22px 24px 24px;margin-top:20px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:26px 32px}
.pair+.scroll,.pair+h3,.scroll+.scroll,.scroll+h3,.scroll+.pair{margin-top:22px}
figure{margin:0;min-width:0}
figcaption{font-weight:600;font-size:15px;margin-bottom:8px}
figcaption small{display:block;font-weight:400;font-size:13px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:8px 12px;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--ink2);font-weight:600;white-space:nowrap;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;padding-left:0;overflow-wrap:break-word;min-width:120px;max-width:420px}
tr:last-child td{border-bottom:0}
td small{display:block;color:var(--muted);white-space:nowrap;font-size:12px}
tr:has(.row-recovered) td{background:var(--wash)}
tr:has(.row-recovered) td:first-child{box-shadow:-10px 0 0 var(--wash)}
.row-recovered{font-weight:650}
.narrow{max-width:560px}
.none{color:var(--muted)}
.key td{text-align:left;overflow-wrap:anywhere}
.key td:first-child{color:var(--ink2);width:11em;min-width:7em}
.badge{display:inline-block;min-width:20px;height:20px;border-radius:10px;font-size:12px;line-height:20px;text-align:center;
background:var(--tone);color:var(--surface);margin-right:8px;font-weight:600;padding:0 5px}
.bar{display:block;height:10px;border-radius:3px;background:var(--accent);min-width:2px}
.stages td:last-child{width:50%;text-align:left;padding-right:0;vertical-align:middle}
pre{margin:0 0 14px;padding:12px 14px;background:var(--page);border:1px solid var(--line);border-radius:8px;font-size:13px;
line-height:1.5;white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,"DejaVu Sans Mono",monospace}
code{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.88em}
.tokens{list-style:none;margin:0;padding:0}
.tokens li{padding:10px 0;border-bottom:1px solid var(--line);font-size:14px;overflow-wrap:anywhere}
.tokens li:last-child{border-bottom:0}
.tokens bdi{white-space:pre-wrap}
.tokens mark{border-radius:3px;padding:0 1px;color:inherit;font-weight:650;white-space:pre-wrap}
.gained mark{background:rgba(var(--heat),.26)}
.lost mark{background:rgba(var(--heat2),.3)}
.tokens small{display:block;color:var(--ink2);font-variant-numeric:tabular-nums}
.chart{display:block;width:100%;height:auto;max-width:640px;overflow:visible}
.chart text{font-size:12px;fill:var(--ink2);font-family:inherit}
.chart .label,.chart .value{fill:var(--ink);paint-order:stroke;stroke:var(--surface);stroke-width:4px}
.chart .value{font-variant-numeric:tabular-nums;font-weight:600}
.chart .axis{fill:var(--muted)}
.chart .grid,.chart .track{stroke:var(--line);stroke-width:1}
.chart .target{stroke:var(--grey);stroke-width:1.2;stroke-dasharray:3 4}
.chart .whisker{stroke:var(--tone);stroke-width:4;stroke-linecap:round;opacity:.38}
.chart circle{fill:var(--tone);stroke:var(--surface);stroke-width:2}
.chart .curve{fill:none;stroke:var(--tone);stroke-width:1.3;stroke-linejoin:round;opacity:.75}
.chart .curve.bold{stroke-width:2.2;opacity:1}
.chart .swatch{fill:var(--tone)}
.chart .cell{fill:rgb(var(--h));fill-opacity:calc(.06 + .94*var(--shade))}
.chart .empty{fill:none;stroke:var(--line)}
.chart .cell-text{font-size:9px;fill:var(--ink2)}
.chart .cell-ink{font-size:9px;fill:var(--cell-ink)}
.chart .number{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--surface);stroke-width:3px}
.chart .leader{stroke:var(--tone);stroke-width:1}
.heat{--h:var(--heat)}.heat2{--h:var(--heat2)}
.reference,.control{--tone:var(--grey)}.baseline{--tone:var(--orange)}.quantized{--tone:var(--violet)}.recovered{--tone:var(--accent)}
footer{color:var(--muted);font-size:13px;margin-top:26px}
@media(max-width:640px){main{padding:22px 12px 40px}h1{font-size:24px}.verdict{font-size:17px}section{padding:16px 14px}
.tiles{grid-template-columns:1fr 1fr;gap:10px}.tile{padding:12px}.tile b{font-size:23px}.tile span,.tile small{font-size:12px}
th,td{padding:7px 7px}table{font-size:13px}.chart text{font-size:17px}.chart .cell-text,.chart .cell-ink{font-size:10px}
th:first-child,td:first-child{min-width:96px}}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
)css";

}  // namespace spear
