"""Make README.md's picture of the map, or a screenshot of a folder's map by Chromium.

python tests/make_map_picture.py                                   tests/map.svg, of the sample tour
python tests/make_map_picture.py --screenshot OUT.png FOLDER...    [--width 360] [--dark] [--hover FILE]
"""

from __future__ import annotations

import argparse
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
DOT = "(m => [m.e, m.f])([...document.querySelectorAll('[data-file]')].find(dot => dot.dataset.file == '{}').getScreenCTM())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--hover")
    parser.add_argument("folders", type=Path, nargs="*", default=[HERE / "photos"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        page = Path(folder) / "map.html"
        page.write_text(mu.map_html([mu.check_folder(folder) for folder in options.folders]), encoding="utf-8")
        browser.open(page, options.width, scheme="dark" if options.dark else "light", touch=options.width < 700)
        if not options.screenshot:
            (HERE / "map.svg").write_text(browser.value(PLAN) + "\n", encoding="utf-8")
            return
        if options.hover:
            at = browser.value(DOT.format(options.hover))
            (browser.tap if options.width < 700 else browser.hover)(*at)
        browser.screenshot(options.screenshot)


if __name__ == "__main__":
    main()
