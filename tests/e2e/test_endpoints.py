"""The other endpoints on a real server: they agree with chat completions and with each other."""

from typing import Any

import httpx

from tests.support.pictures import data_url, draw_page, encode, question
from tests.support.server_process import ServerProcess

GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"return_token_ids": True}}


def post(server: ServerProcess, path: str, **body: Any) -> Any:
    response = httpx.post(server.url + path, json=body, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def test_tokenize_tells_what_a_question_costs_and_completions_take_its_ids(server: ServerProcess) -> None:
    messages = question("What is it?", draw_page(900, 400))
    told = post(server, "/tokenize", messages=messages)
    chat = server.client().chat.completions.create(model="tiny", messages=messages, max_tokens=1)  # type: ignore[arg-type]
    assert chat.usage is not None
    assert told["count"] == len(told["tokens"]) == chat.usage.prompt_tokens
    assert told["images"][0]["num_crops"] > 1
    assert told["prompt_tokens_details"]["image_tokens"] == 64 * told["images"][0]["num_crops"]

    words = [{"role": "user", "content": "What is it?"}]
    told = post(server, "/tokenize", messages=words)
    chat = server.client().chat.completions.create(model="tiny", messages=words, max_tokens=12, **GREEDY)  # type: ignore[call-overload]
    text = server.client().completions.create(model="tiny", prompt=told["tokens"], max_tokens=12, **GREEDY)
    assert text.choices[0].model_extra["token_ids"] == chat.choices[0].model_extra["token_ids"]
    prompt = post(server, "/detokenize", tokens=told["tokens"][1:])["prompt"]
    assert prompt == "<用户>What is it?<AI>"
    again = server.client().completions.create(model="tiny", prompt=prompt, max_tokens=12, **GREEDY)
    assert again.choices[0].text == text.choices[0].text
    assert again.usage == text.usage


def test_completions_of_several_prompts_are_those_that_each_gets_alone(server: ServerProcess) -> None:
    client = server.client()
    prompts = ["Once upon a time", "The colour of the", "1 2 3"]
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 16, "seed": 7, "n": 2}
    alone = [[choice.text for choice in client.completions.create(prompt=one, **options).choices] for one in prompts]
    together = client.completions.create(prompt=prompts, echo=True, **options)
    expected = [one + text for one, texts in zip(prompts, alone, strict=True) for text in texts]
    assert [choice.text for choice in together.choices] == expected
    streamed = [""] * 6
    for chunk in client.completions.create(prompt=prompts, echo=True, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == expected


def test_logprobs_of_a_completion(server: ServerProcess) -> None:
    completion = server.client().completions.create(
        model="tiny", prompt="Once", max_tokens=8, temperature=0, logprobs=3, extra_body={"ignore_eos": True}
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.token_logprobs) == 8
    for drawn, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert drawn == max(top.values())
        assert 3 <= len(top) <= 4


def test_a_response_is_the_chat_completion_that_asks_for_the_same(server: ServerProcess) -> None:
    client = server.client()
    page = draw_page(500, 300)
    chat = client.chat.completions.create(
        model="tiny",
        messages=question("What is it?", page),
        max_tokens=12,
        temperature=0,  # type: ignore[arg-type]
    )
    asked: Any = {
        "model": "tiny",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": data_url(encode(page)), "detail": "auto"},
                    {"type": "input_text", "text": "What is it?"},
                ],
            }
        ],
        "max_output_tokens": 12,
        "temperature": 0,
    }
    whole = client.responses.create(**asked)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    with client.responses.stream(**asked) as stream:
        final = stream.get_final_response()
    assert (final.output_text, final.status) == (whole.output_text, whole.status)
