from xml.etree import ElementTree as ET

from model.demo.curve import draw_curve


def test_every_figure_of_the_log_has_its_line_and_its_name():
    log = [{"step": 25, "loss": 9.0, "characters": 0.0}, {"step": 50, "loss": 4.5, "characters": 0.5, "read": 1.0}]
    picture = ET.fromstring(draw_curve(log))  # noqa: S314 - our own
    lines = picture.findall("{*}polyline")
    texts = [text.text for text in picture.findall("{*}text")]
    assert "loss (top: 9.0)" in texts
    assert {"characters of patches", "ids of texts read"} <= set(texts)
    assert "ids of other answers" not in texts
    # 360 high with edges of 44: half of the way down is 180, the top 44, the bottom 316.
    assert [point.split(",")[1] for point in lines[0].attrib["points"].split()] == ["44.0", "180.0"]
    assert [point.split(",")[1] for point in lines[1].attrib["points"].split()] == ["316.0", "180.0"]
    assert [point.split(",")[1] for point in lines[2].attrib["points"].split()] == ["44.0"]
