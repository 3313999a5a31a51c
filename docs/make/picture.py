"""The README's picture, light and dark: the head of the report of runs/example. `python -m docs.make.picture`

Needs the extra `dev` and a Chromium on the PATH. The verdict's sentences are left out, because the README says them,
and all answers but the first.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from dpo_diag import load_run
from dpo_diag.report import write_report

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
WIDTH, SCALE, COLOURS, MAX_BYTES = 960, 2, 64, 150_000
SHORT = """
  .skip, nav, #verdict > p:not(.harm), #verdict details, #outputs > :not(h2, #answers), #answers > details ~ details,
  #curves .lead, #curves figcaption, #curves details, #curves figure ~ * { display: none !important }
  body { padding-block: 1rem 0 !important }
"""
"""What is left of the page: whose run it is, the verdict, its numbers, the first answer, and the first curves."""


def main() -> None:
    """Write both pictures; raises where one is larger than a README should load."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no Chromium on the PATH; hint: install chromium")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = write_report(load_run(ROOT / "runs" / "example"), Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            # The page's own policy forbids any other style, which is what `SHORT` is.
            page = browser.new_page(
                viewport={"width": WIDTH, "height": 900},
                device_scale_factor=SCALE,
                color_scheme=scheme,
                bypass_csp=True,
            )
            page.goto(report.as_uri())
            page.add_style_tag(content=SHORT)
            end = page.locator("#curves figure").first.bounding_box()
            height = end["y"] + end["height"] + 12
            shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
            file = PICTURES / f"report-{scheme}.png"
            picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            picture.save(file, optimize=True)
            size = file.stat().st_size
            print(f"{file.relative_to(ROOT)}: {picture.width} x {picture.height}, {size / 1000:.0f} kB")
            if size > MAX_BYTES:
                sys.exit(f"{file} is larger than {MAX_BYTES / 1000:.0f} kB; hint: fewer COLOURS")
        browser.close()


if __name__ == "__main__":
    main()
