"""Make README.md's picture of the map of the sample tour, tests/map.svg, with Chromium:

python tests/make_map_picture.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import mapillary_uploader as mu  # noqa: E402
from browser import Browser  # noqa: E402

PLAN = """(plan => {
  plan.prepend(document.querySelector("style"))
  plan.querySelectorAll("[data-box]").forEach(dot => dot.removeAttribute("data-box"))
  return new XMLSerializer().serializeToString(plan)
})(document.querySelector("figure svg"))"""

with tempfile.TemporaryDirectory() as folder, Browser() as browser:
    page = Path(folder) / "map.html"
    page.write_text(mu.map_html([mu.check_folder(HERE / "photos")]), encoding="utf-8")
    browser.open(page)
    (HERE / "map.svg").write_text(browser.value(PLAN) + "\n", encoding="utf-8")
