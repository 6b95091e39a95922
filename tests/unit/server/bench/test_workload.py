from itertools import islice

import pytest

from server.bench.pictures import PictureSize
from server.bench.prompts import Span
from server.bench.workload import REUSE_WINDOW, PictureMix, Workload, plan


def make_workload(**changes):
    fields = {
        "prompt_words": Span(12, 12),
        "num_shared_words": 0,
        "distinct_prompts": None,
        "answer_tokens": Span(8, 8),
        "pictures": None,
        "seed": 1,
    }
    return Workload(**fields | changes)


def make_mix(**changes):
    fields = {
        "sizes": (PictureSize(8, 8, 1.0),),
        "file_format": "png",
        "share": 1.0,
        "per_request": 1,
        "reuse": 0.0,
    }
    return PictureMix(**fields | changes)


def requests(workload, count, part=1):
    return list(islice(plan(workload, part), count))


def urls(request):
    return [part["image_url"]["url"] for part in request.content if part["type"] == "image_url"]


def test_text_requests_are_plain_text_and_all_differ():
    made = requests(make_workload(), 50) + requests(make_workload(), 50, part=2)
    assert len({request.content for request in made}) == 100
    assert {(len(request.content.split()), request.max_tokens) for request in made} == {(12, 8)}


def test_the_same_part_gives_the_same_requests():
    workload = make_workload(pictures=make_mix(share=0.5, reuse=0.5), prompt_words=Span(10, 30))
    assert requests(workload, 20) == requests(workload, 20)
    assert requests(workload, 20) != requests(make_workload(seed=2), 20)


def test_lengths_lie_in_their_spans():
    made = requests(make_workload(prompt_words=Span(10, 14), answer_tokens=Span(1, 3)), 200)
    assert {len(request.content.split()) for request in made} == {10, 11, 12, 13, 14}
    assert {request.max_tokens for request in made} == {1, 2, 3}


def test_prompts_come_round_when_asked():
    texts = [request.content for request in requests(make_workload(distinct_prompts=3, prompt_words=Span(9, 20)), 7)]
    assert texts[:3] == texts[3:6]
    assert texts[6] == texts[0]
    assert len(set(texts)) == 3


def test_pictures_stand_before_the_text():
    (request,) = requests(make_workload(pictures=make_mix(per_request=2)), 1)
    assert [part["type"] for part in request.content] == ["image_url", "image_url", "text"]
    assert request.num_pictures == 2
    assert len(set(urls(request))) == 2


def test_share_of_requests_with_pictures():
    made = requests(make_workload(pictures=make_mix(share=0.25)), 100)
    with_pictures = [request for request in made if request.num_pictures]
    assert 12 <= len(with_pictures) <= 40
    assert all(isinstance(request.content, str) for request in made if not request.num_pictures)


def test_without_reuse_no_picture_comes_twice():
    made = [url for request in requests(make_workload(pictures=make_mix()), 40) for url in urls(request)]
    assert len(set(made)) == 40


def test_reused_pictures_were_sent_before_and_not_long_ago():
    made = requests(make_workload(pictures=make_mix(reuse=0.6)), 100)
    seen = []
    num_reused = 0
    for request in made:
        (url,) = urls(request)
        is_reused = url in seen
        assert is_reused == bool(request.num_reused_pictures)
        if is_reused:
            assert seen.index(url) >= len(seen) - REUSE_WINDOW
            num_reused += 1
        else:
            seen.append(url)
    assert 40 <= num_reused <= 80


def test_sizes_come_by_their_weights():
    sizes = (PictureSize(8, 8, 3.0), PictureSize(9, 9, 1.0))
    made = requests(make_workload(pictures=make_mix(sizes=sizes)), 60)
    lengths = [len(urls(request)[0]) for request in made]
    small = sum(length < (min(lengths) + max(lengths)) / 2 for length in lengths)
    assert 30 <= small <= 58


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pictures_leave_the_texts_alone(share):
    plain = [request.content for request in requests(make_workload(), 5)]
    made = requests(make_workload(pictures=make_mix(share=share)), 5)
    texts = [request.content if isinstance(request.content, str) else request.content[-1]["text"] for request in made]
    assert texts == plain
