"""The explorer in a headless Chromium: milliseconds of a frame and of the first motion, the tour's pictures.

    python benchmarks/explorer.py [--pictures docs/explorer]

A frame's time is that of the main thread, computing and drawing 2,000 particles; on a machine that does
other things too it is longer. The targets are 33 ms with an exact score, 66 ms with a discriminator or a
generator that is trained meanwhile, 100 ms with kernel fields.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

from partikel.app.explorer import write_explorer

STATES = {
    "exact score, SDE": "",
    "exact score, spiral": "data=spiral&g2=2&lambda2=2",
    "kernel density": "g2=0&lambda2=0",
    "generator": "carrier=generator&g2=0&lambda2=0&arrows=1",
    "Discriminator Flow": "field=critic",
    "GAN": "field=critic&carrier=generator",
}
SECONDS = 8
SIZE = (1280, 900)


def browser() -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    shape = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    return driver


def measure(driver: Any, page: str) -> None:
    for name, fragment in STATES.items():
        driver.get("about:blank")
        driver.get(f"{page}#{fragment}")
        time.sleep(SECONDS)
        cost, first = driver.execute_script(
            "return [explorer.page.cost, explorer.page.firstMotion]"
        )
        print(f"{name:<22} {cost:6.1f} ms a frame   first motion after {first:5.0f} ms")


def draw(driver: Any, page: str, folder: Path) -> None:
    """A picture of each step of the tour at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    driver.get(page)
    ended = """const one = explorer.page.simulation;
        const ready = one.train ? one.iterations >= one.horizon && one.settled : one.finished;
        if (ready) explorer.page.play(false);
        return ready;"""
    for step in range(driver.execute_script("return explorer.TOUR.length")):
        driver.execute_script(f"explorer.page.tourTo({step})")
        while not driver.execute_script(ended):
            time.sleep(0.02)
        time.sleep(1.2)
        picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
        picture = picture.resize((SIZE[0] * 2 // 3, SIZE[1] * 2 // 3), Image.Resampling.LANCZOS)
        picture.quantize(method=Image.Quantize.FASTOCTREE).save(
            folder / f"{step + 1}.png", optimize=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the tour")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = write_explorer(Path(folder) / "page.html").as_uri()
        driver = browser()
        try:
            if given.pictures:
                draw(driver, page, given.pictures)
            else:
                measure(driver, page)
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
