"""The live page in Chromium, before a real system."""

from __future__ import annotations

import io
from importlib.resources import files
from typing import Any

import msgspec
import pytest
from live import Listener
from PIL import Image
from webpage import Site, true

from mdi_exit.data import shipped
from mdi_exit.topics import Topics
from mdi_exit.wire import Status, encode

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

TOTAL = "Number(document.querySelector('#t-total').textContent.replaceAll(',', ''))"

# Another kind of model; the form is a new one, that the page's own panel does not listen to as well.
TAKES = """async (kind) => {
    const form = document.getElementById("ask");
    form.replaceWith(form.cloneNode(true));
    const { Frames } = await import("/frames.js");
    new Frames().takes(kind);
}"""


async def total(page: Any) -> float:
    return await page.evaluate(TOTAL)


async def grows(page: Any, beyond: float) -> None:
    await true(page, f"{TOTAL} > {beyond}")


async def test_it_shows_the_numbers_of_a_running_system(page: Any) -> None:
    await grows(page, await total(page) + 10)
    assert await page.inner_text("#link-word") == "Live"
    assert "1 of 1 agents ready" in await page.inner_text("#status")
    assert await page.inner_text("#emulated") == "emulated: jetson-nano"
    assert await page.locator("#nodes th[scope=row]").all_inner_texts() == ["source", "oneemulated"]
    assert await page.locator("#map .name").all_text_contents() == ["source", "one"]
    flow = page.locator("#map .pipe:not(.idle)")
    await flow.first.wait_for(state="attached")
    assert "source to one" in await page.get_attribute("#map svg", "aria-label")
    assert await page.locator("#exits li").count() >= 1
    assert "one joined with layers 4-8" in await page.inner_text("#log")
    assert await page.locator(".chart").count() == 4
    drawn = "[...document.querySelectorAll('.plot canvas')].map(c => new Set(new Uint32Array(c.getContext('2d')" \
        ".getImageData(0, 0, c.width, c.height).data.buffer)).size)"  # fmt: skip
    assert all(colours > 8 for colours in await page.evaluate(drawn)), "each chart has lines on it"
    await true(page, "document.querySelectorAll('#frames img').length >= 4")
    loaded = "[...document.querySelectorAll('#frames img')].some(image => image.complete && image.naturalWidth > 0)"
    await true(page, loaded)


async def test_it_outlives_its_gateway(page: Any, site: Site, faults: list[str]) -> None:
    site.stop()
    await true(page, "document.querySelector('#link-word').textContent === 'Cut off'")
    assert "the last figures are kept" in await page.inner_text("#status")
    kept = await total(page)
    assert kept > 5
    site.start()
    await true(page, "document.querySelector('#link-word').textContent === 'Live'")
    await grows(page, kept)
    assert all("net::ERR_" in fault for fault in faults), faults  # of a connection that breaks, however it does
    faults.clear()


@pytest.mark.parametrize(
    ("kind", "title", "offered"),
    [
        ("image", "Images", {"choose", "camera", "frames"}),
        ("audio", "Sound", {"choose"}),
        ("text", "Texts", {"ask"}),
        ("tensor", "Values", set()),
    ],
)
async def test_it_offers_what_the_model_takes(page: Any, kind: str, title: str, offered: set[str]) -> None:
    ways = ["choose", "camera", "frames", "ask"]
    shown = await page.evaluate(
        """async ([kind, ways]) => {
            const { Frames } = await import("/frames.js");
            const frames = new Frames();
            frames.takes("text");
            frames.takes(kind);
            return ways.filter((id) => document.getElementById(id).checkVisibility());
        }""",
        [kind, ways],
    )
    assert set(shown) == offered
    assert await page.inner_text("#frames-title") == title
    assert ("image" in await page.inner_text("#answer")) == (kind == "image")


async def test_a_text_is_sent_as_one(page: Any, faults: list[str]) -> None:
    await page.evaluate(TAKES, "text")
    await page.fill("#text", "You have won")
    async with page.expect_request("**/v1/infer") as asked:
        await page.click("#ask button")
    assert (await asked.value).headers["content-type"] == "text/plain"
    await true(page, "document.querySelector('#answer').dataset.level === 'bad'")
    assert await page.inner_text("#answer") == "item: expected image, as the model takes, got text"
    faults.clear()  # the status 400 that this model's source answers with


async def test_the_last_answers_to_texts_stay_in_sight(page: Any) -> None:
    async def answered(route: Any) -> None:
        body = {"frame": None, "name": "", "label": 5, "confidence": 0.75, "exit": 2, "latency_s": 0.1}
        await route.fulfill(json=body | {"path": ["one"]})

    await page.route("**/v1/infer", answered)
    await page.evaluate(TAKES, "text")
    for number in range(1, 6):
        await page.fill("#text", f"<b>text {number}</b>")
        await page.click("#ask button")
        await page.locator("#answers li:first-child q", has_text=f"text {number}").wait_for()
    shown = await page.locator("#answers li").all_inner_texts()
    assert len(shown) == 4, "the oldest has gone"
    assert [line.strip() for line in shown[0].splitlines() if line] == ["class 5", "exit 2 · 75 %", "<b>text 5</b>"]
    await page.evaluate(TAKES, "audio")
    assert await page.locator("#answers li").count() == 0


async def test_a_chosen_image_gets_its_label(page: Any, faults: list[str]) -> None:
    images = shipped()
    file = io.BytesIO()
    Image.fromarray(images.images_NHWC[0, :, :, 0]).save(file, "PNG")
    picked = {"name": "shoe.png", "mimeType": "image/png", "buffer": file.getvalue()}
    await page.set_input_files("#file", picked)
    await true(page, "document.querySelector('#answer strong') !== null")
    told = await page.inner_text("#answer")
    assert told.startswith(images.classes[int(images.labels_N[0])])
    assert "sure at exit" in told
    await page.locator("#frames .own b", has_text="Ankle boot").wait_for()
    await page.set_input_files("#file", picked | {"buffer": b"no image at all"})
    await true(page, "document.querySelector('#answer').dataset.level === 'bad'")
    assert "expected a file of" in await page.inner_text("#answer")
    assert [fault for fault in faults if "status of 400" not in fault] == []
    faults.clear()


async def test_the_camera_is_labelled_until_it_is_stopped(page: Any) -> None:
    await page.click("#camera")
    await true(page, "document.querySelectorAll('#frames .own').length >= 2")
    assert await page.is_visible("#view")
    await page.click("#camera")
    assert await page.is_hidden("#view")
    assert await page.inner_text("#camera") == "Camera"


async def test_what_comes_from_the_network_stays_text(page: Any, site: Site, faults: list[str]) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    status = Status("mallory", 1, True, "agent", hostile, (0, 2), (0,), 16, hostile, hostile)
    topic = Topics(site.system.deployment).agents("mallory")
    with Listener(site.system.url, topic) as listener:
        listener.publish(topic, encode(status))
        row = page.locator("#nodes tr", has_text="mallory")
        await row.wait_for()
        assert hostile in await row.inner_text()
        assert hostile in await page.inner_text("#emulated")
        listener.publish(topic, encode(msgspec.structs.replace(status, online=False)))
    assert await page.locator("img[src=x]").count() == 0
    assert faults == []
    with pytest.raises(Exception, match="TrustedScript"):
        await page.evaluate("() => { document.createElement('script').textContent = 'alert(1)'; }")
    with pytest.raises(Exception, match="TrustedHTML"):
        await page.evaluate("() => { document.body.innerHTML = '<b>bold</b>'; }")
    assert all("Trusted" in fault for fault in faults), "the page's policy forbids to make anything else of text"
    faults.clear()


async def test_it_can_be_stilled_and_used_by_keyboard(page: Any) -> None:
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.focus("#pause")
    await page.keyboard.press("Enter")
    assert await page.get_attribute("#pause", "aria-pressed") == "true"
    still = await total(page)
    update = await page.evaluate(
        "new Promise(done => new EventSource('/v1/events').addEventListener('update', e => done(JSON.parse(e.data))))"
    )
    assert update["state"]["run"]["completed"] >= still
    await page.wait_for_timeout(1200)  # several updates, none of which may show
    assert await total(page) == still
    await page.keyboard.press("Enter")
    await grows(page, still)


async def test_nothing_jumps_and_a_phone_needs_no_sideways_scrolling(browser: Any, site: Site) -> None:
    context = await browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = await context.new_page()
    await page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => list.getEntries().forEach(e => { window.shift += e.value; }))"
        ".observe({ type: 'layout-shift', buffered: true });"
    )
    await page.goto(site.address)
    await true(page, "document.querySelectorAll('#frames img').length >= 6")
    await grows(page, 5)
    await grows(page, await total(page) + 20)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    assert await page.evaluate("window.shift") < 0.1, "what Core Web Vitals call good"
    await context.close()


@pytest.mark.parametrize("path", ["", "docs"])
async def test_axe_finds_nothing_serious(browser: Any, site: Site, path: str) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python, for its axe-core")
    context = await browser.new_context(bypass_csp=True, reduced_motion="reduce")
    page = await context.new_page()
    await page.goto(site.address + path)
    await true(page, "document.querySelectorAll('#operations section').length > 3" if path else f"{TOTAL} > 5")
    if not path:
        await page.click("#pause")  # so that nothing moves while it is looked at
    await page.evaluate(files(axe).joinpath("axe.min.js").read_text())
    assert {scheme: await seriously_wrong(page, scheme) for scheme in ("light", "dark")} == {"light": {}, "dark": {}}
    if not path:
        await page.route("**/v1/events", lambda route: route.abort())
        await page.reload()
        await page.evaluate(files(axe).joinpath("axe.min.js").read_text())
        await true(page, "document.querySelector('#link-word').textContent === 'Cut off'")
        assert await seriously_wrong(page, "light") == {}
    await context.close()


async def seriously_wrong(page: Any, scheme: str) -> dict[str, list[str]]:
    """By axe's rule, some of the elements."""
    await page.emulate_media(color_scheme=scheme)
    found = await page.evaluate("axe.run()")
    assert len(found["passes"]) > 15, "it has looked"
    return {
        violation["id"]: [node["html"][:160] for node in violation["nodes"]][:4]
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    }
