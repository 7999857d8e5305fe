"""tools/analyze.py writes one page that needs no other file."""

import re

from tools import analyze


def test_one_page_with_everything_inside(call, tiny_model, photo, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = call(
        analyze.main, photo, "a <red> cube", "--after", photo, "--model", tiny_model, "--out", page, "--times", 0.2, 0.7
    )
    assert code == 0 and out.strip() == str(page)
    text = page.read_text()
    assert text.count("<img") == text.count("data:image/png;base64,") == 2 + 2 * 6  # two photos; z, x̂, b, three gradients
    assert text.count("<svg") == 2 and "a &lt;red&gt; cube" in text and "saturation" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "NaN" not in text and "nan" not in re.sub(r"base64,[^\"]*", "", text)


def test_without_a_corrective_and_refusals(call, tiny_model, photo, tmp_path):
    page = tmp_path / "page.html"
    arguments = (analyze.main, photo, "a", "--model", tiny_model, "--out", page, "--draws", 1)
    assert call(*arguments, "--no-lmc", "--times", 0.5)[0] == 0 and "LMC: b" not in page.read_text()
    code, _, err = call(*arguments, "--no-lmc", "--corrective", "b.safetensors")
    assert code == 1 and "leave one of them out" in err
    for more, message in {("--times", 1.5): "between 0 and 1", ("--corrective", "x.safetensors"): "no corrective"}.items():
        code, _, err = call(*arguments, *more)
        assert code == 1 and message in err and err.count("\n") == 1
