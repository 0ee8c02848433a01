"""OpenAI's own Python client against the server: what it makes of replies, streams, lists and refusals."""

import asyncio
import json
import sys

import openai

given = json.loads(sys.argv[1])
CONVERSATION = given["conversation"]
client = openai.OpenAI(base_url=given["url"], api_key=given["key"], max_retries=0)


def create(**options):
    return client.chat.completions.create(
        **({"model": "teacher", "messages": CONVERSATION, "max_tokens": 27} | options)
    )


def whole():
    reply = create(n=3, seed=1)
    raw = client.chat.completions.with_raw_response.create(model="teacher", messages=CONVERSATION, seed=1)
    return {
        "contents": [choice.message.content for choice in reply.choices],
        "finish": [choice.finish_reason for choice in reply.choices],
        "model": reply.model,
        "fingerprint": reply.system_fingerprint,
        "usage": reply.usage.total_tokens,
        "status": [choice.rlt["gen_status"] for choice in reply.choices],
        "request_id": raw.headers["x-request-id"] == raw.parse()._request_id,
    }


def beside():
    reply = create(messages=CONVERSATION[:1], seed=1, extra_body={"answer": CONVERSATION[1]["content"]})
    return reply.choices[0].message.content


def extras():
    reply = create(n=4, seed=5, extra_body={"rlt": {"score": True}})
    return [choice.rlt["reward"] for choice in reply.choices]


def logprobs():
    [choice] = create(seed=1, logprobs=True).choices
    return ["".join(token.token for token in choice.logprobs.content), choice.message.content]


def stream():
    texts, finish, usage = {}, {}, None
    for chunk in create(n=3, seed=1, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            finish[choice.index] = choice.finish_reason or finish.get(choice.index)
    return {"texts": [texts[i] for i in range(3)], "finish": [finish[i] for i in range(3)], "usage": usage.total_tokens}


def helper():
    """`.stream` puts the chunks together, log-probs too."""
    options = {"model": "teacher", "messages": CONVERSATION, "seed": 1, "logprobs": True}
    with client.chat.completions.stream(**options) as events:
        deltas = [event.delta for event in events if event.type == "content.delta"]
        [choice] = events.get_final_completion().choices
    joined = "".join(token.token for token in choice.logprobs.content)
    return ["".join(deltas), choice.message.content, joined, choice.finish_reason]


async def at_once():
    async with openai.AsyncOpenAI(base_url=given["url"], api_key=given["key"]) as several:
        options = {"model": "teacher", "messages": CONVERSATION, "max_tokens": 27}
        replies = await asyncio.gather(*(several.chat.completions.create(seed=seed, **options) for seed in range(8)))
        return len({reply.id for reply in replies})


def models():
    listed = client.models.list().data
    return {"ids": [model.id for model in listed], "one": client.models.retrieve(listed[1].id).rlt["revision"]}


def refused(ask):
    try:
        ask()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param, error.type]
    return None


def refusals():
    stranger = openai.OpenAI(base_url=given["url"], api_key="sk-wrong", max_retries=0)
    outsider = openai.OpenAI(base_url=given["url"], api_key=given["outsider"], max_retries=0)
    busy = openai.OpenAI(base_url=given["scripted"], api_key="none", max_retries=0)
    return {
        "model": refused(lambda: create(model="gpt-4o")),
        "retrieve": refused(lambda: client.models.retrieve("gpt-4o")),
        "tools": refused(lambda: create(tools=[{"type": "function", "function": {"name": "f"}}])),
        "format": refused(lambda: create(response_format={"type": "json_object"})),
        "length": refused(lambda: create(max_tokens=5000)),
        "stream": refused(lambda: create(max_tokens=5000, stream=True)),
        "system": refused(lambda: create(messages=[{"role": "system", "content": "Be brief."}, *CONVERSATION])),
        "key": refused(lambda: stranger.models.list()),
        "scope": refused(lambda: outsider.models.list()),
        "busy": refused(lambda: busy.chat.completions.create(model="teacher", messages=CONVERSATION)),
    }


def again():
    """With its own retries the client waits as long as it is told, and gets its answer."""
    patient = openai.OpenAI(base_url=given["scripted"], api_key="none", max_retries=2)
    return patient.chat.completions.create(model="teacher", messages=CONVERSATION, seed=1).choices[0].finish_reason


def broken():
    """A failure in the middle of a stream."""
    scripted = openai.OpenAI(base_url=given["scripted"], api_key="none", max_retries=0)
    seen = ""
    try:
        for chunk in scripted.chat.completions.create(model="teacher", messages=CONVERSATION, stream=True, seed=7):
            seen += chunk.choices[0].delta.content or ""
    except openai.APIError as error:
        return [type(error).__name__, error.code, seen]
    return None


found = {}
for step in (whole, beside, extras, logprobs, stream, helper, models, refusals, broken, again):
    found[step.__name__] = step()
found["at_once"] = asyncio.run(at_once())
print("RESULT " + json.dumps(found))
