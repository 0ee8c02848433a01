"""`/v1/chat/completions` and `/v1/models`: explanations for programs that speak OpenAI's protocol.

A chat request is read into an `/explain` request (`reading`), and what that gives is written as completions
(`writing`) or chunks (`chunks`). Whatever would change the result and is not done is refused by name.
"""
