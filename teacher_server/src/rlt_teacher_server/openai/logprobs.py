"""Log-probs of an explanation's tokens, in OpenAI's shape."""

from __future__ import annotations

from rlt_client.formats import Format
from rlt_client.prompts import TextCodec, read_completion
from rlt_client.schemas.reward import TeacherTokens
from rlt_teacher_server.openai.replies import Logprobs, TokenLogprob
from rlt_teacher_server.reading.decoding import IncrementalDecoder

__all__ = ["content_logprobs"]


def content_logprobs(codec: TextCodec, format: Format, tokens: TeacherTokens) -> Logprobs:
    """Of the tokens of a complete explanation, without those of its closing tag.

    A token that runs into the tag counts with its part of the explanation. Decodes token by token: half a second for
    16,000 of them.
    """
    read = read_completion(codec, format, tokens.token_ids)
    inside = read.text.removeprefix(format.teacher.held).removesuffix(read.straddling)
    decoder = IncrementalDecoder(codec)
    texts = [decoder.feed([each]) for each in tokens.token_ids[: read.n_inside]]
    if texts:
        texts[-1] += inside[sum(map(len, texts)) :]  # what waited for tokens that are not part of it
    if read.straddling:
        texts.append(read.straddling)
    pairs = zip(texts, tokens.logprobs, strict=False)
    return Logprobs(content=[_token(text, logprob) for text, logprob in pairs])


def _token(text: str, logprob: float) -> TokenLogprob:
    return TokenLogprob(token=text, bytes=list(text.encode()), logprob=logprob)
