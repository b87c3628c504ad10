"""The page of `sample.py --serve`, in a real browser without a window: Chromium by Selenium."""

import shutil
from collections.abc import Iterator

import pytest
from serving import CONFIG, FLAGS, make_files, serving

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="neither Chromium nor Chrome with its chromedriver"
)
VOICES = ["short", "long", "inner", "frozen", "tuned"]
HOSTILE = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(make_files(tmp_path_factory.mktemp("serve")), *FLAGS) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: WebDriver, address: str) -> WebDriver:
    """The page, freshly loaded and filled with the example."""
    browser.get(address)
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".voice")) == len(VOICES))
    return browser


def until(browser: WebDriver, condition) -> object:
    return WebDriverWait(browser, 20, poll_frequency=0.05).until(condition)


def click(browser: WebDriver, css: str) -> None:
    browser.find_element(By.CSS_SELECTOR, css).click()


def choose(browser: WebDriver, *names: str) -> None:
    for i, name in enumerate(VOICES):
        box = browser.find_element(By.ID, f"voice-{i}")
        if box.is_selected() != (name in names):
            box.click()


def set_field(browser: WebDriver, css: str, text: str) -> None:
    field = browser.find_element(By.CSS_SELECTOR, css)
    field.clear()
    field.send_keys(text)


def table_of(browser: WebDriver) -> dict[str, str]:
    script = "return [...document.querySelectorAll('.slot input')].map((field) => field.value)"
    texts = browser.execute_script(script)
    return dict(zip(texts[::2], texts[1::2], strict=True))


def answer(browser: WebDriver, name: str):
    """The card of one voice, once it is written to its end."""
    css = f'.answer[data-voice="{name}"][data-done]'
    return until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, css))[0]


def test_a_first_result_without_a_click(page: WebDriver) -> None:
    chosen = [
        name
        for i, name in enumerate(VOICES)
        if page.find_element(By.ID, f"voice-{i}").is_selected()
    ]
    assert chosen and all(answer(page, name).text for name in chosen)


def test_a_test_table_and_its_ticks(page: WebDriver) -> None:
    """What a sentence says is ticked: here one that holds the table's name."""
    choose(page, "short")
    before = table_of(page)
    click(page, "#test-table")
    until(page, lambda b: table_of(b) != before)
    assert table_of(page)["name"]
    card = answer(page, "short")
    slots = card.find_elements(By.CSS_SELECTOR, ".slots li")
    assert [slot.text for slot in slots] == list(table_of(page))
    items = page.execute_script(
        'const list = slotList(\'{"name": "a", "area": "b"}\', [\'area\']);'
        "return [...list.children].map((item) => [item.textContent, item.title])"
    )
    assert items == [["name", "not found in the sentence"], ["area", "said"]]


def test_side_by_side(page: WebDriver) -> None:
    choose(page, *VOICES)
    click(page, "#write")
    said = {}
    for name in VOICES:
        card = answer(page, name)
        tokens = card.find_elements(By.CSS_SELECTOR, ".said span")
        chances = [float(t.get_dom_attribute("data-probability")) for t in tokens]
        assert chances and all(0 < p <= 1 for p in chances)
        assert "%" in tokens[0].get_attribute("title")
        said[name] = card.find_element(By.CSS_SELECTOR, ".said").text
        has_button = bool(card.find_elements(By.CSS_SELECTOR, ".attention"))
        assert has_button == (name in ("short", "long", "inner"))
    assert len(set(said.values())) == len(VOICES)
    assert not page.find_element(By.ID, "stop").is_enabled()


def test_the_heat_map(page: WebDriver) -> None:
    choose(page, "long")
    click(page, "#write")
    card = answer(page, "long")
    n_tokens = len(card.find_elements(By.CSS_SELECTOR, ".said span"))
    card.find_element(By.CSS_SELECTOR, ".attention").click()
    until(page, lambda b: b.find_elements(By.CSS_SELECTOR, ".map tbody tr"))
    rows = card.find_elements(By.CSS_SELECTOR, ".map tbody tr")
    cells = card.find_elements(By.CSS_SELECTOR, ".map td[data-share]")
    assert len(rows) == CONFIG.n_layer and len(cells) == CONFIG.n_layer * n_tokens
    shares = [float(cell.get_dom_attribute("data-share")) for cell in cells]
    assert all(0 < share < 1 for share in shares) and len(set(shares)) == len(shares)
    shown = [float(c.value_of_css_property("background-color").split(",")[-1][:-1]) for c in cells]
    assert shown == pytest.approx(shares, abs=0.01)


def test_the_table_is_edited(page: WebDriver) -> None:
    choose(page, "frozen")
    click(page, "#write")
    first = answer(page, "frozen").find_element(By.CSS_SELECTOR, ".said").text
    click(page, ".slot:nth-child(3) button")
    click(page, "#add")
    set_field(page, ".slot:last-child input:first-child", "near")
    set_field(page, ".slot:last-child input:nth-child(2)", "Café “Rouge”")
    click(page, "#write")
    assert answer(page, "frozen").find_element(By.CSS_SELECTOR, ".said").text != first
    set_field(page, ".slot:last-child input:first-child", "name")
    click(page, "#write")
    assert page.find_element(By.ID, "problem").text == "slot 'name' is repeated"


def test_what_it_shows_is_text(page: WebDriver) -> None:
    choose(page, "short")
    set_field(page, ".slot:first-child input:first-child", HOSTILE)
    set_field(page, ".slot:first-child input:nth-child(2)", "")
    click(page, "#write")
    note = until(page, lambda b: b.find_elements(By.CSS_SELECTOR, ".answer .error"))[0]
    assert "<img" in note.text and "the value is empty" in note.text
    page.execute_script("addAnswer({name: arguments[0], kind: arguments[0], origin: ''})", HOSTILE)
    assert HOSTILE in page.find_element(By.CSS_SELECTOR, ".answer:last-child h3").text
    assert not page.find_elements(By.CSS_SELECTOR, "img") and page.title == "mingpt-prefix"


def test_no_more_than_needed_is_loaded(page: WebDriver, address: str) -> None:
    answer(page, "short")
    names = page.execute_script(
        "return performance.getEntriesByType('resource').map((e) => e.name)"
    )
    wanted = {address + path for path in ("about", "generate")}
    assert {name for name in names if not name.endswith("/favicon.ico")} == wanted
    complaints = [entry["message"] for entry in page.get_log("browser")]
    assert [text for text in complaints if "favicon" not in text and "400" not in text] == []


def test_stopping(page: WebDriver, address: str) -> None:
    choose(page, "tuned", "short")
    # Answers that never come.
    page.execute_script(
        "window.fetch = (_, options) => new Promise((_, fail) => options.signal.addEventListener("
        "'abort', () => fail(options.signal.reason)))"
    )
    click(page, "#write")
    until(page, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".writing")) == 2)
    click(page, "#stop")
    until(page, lambda b: not b.find_elements(By.CSS_SELECTOR, ".writing"))
    assert [n.text for n in page.find_elements(By.CSS_SELECTOR, ".answer .note")] == ["stopped"] * 2
