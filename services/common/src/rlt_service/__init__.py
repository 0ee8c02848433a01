"""What every server of the platform shares. No torch.

settings    one pydantic-settings class per server: flags, environment, secret files
app         `create_app`: errors, keys, limits, request ids, logs, health, metrics in one place
routing     `Router`: routes that check the key before the body and read JSON strictly
auth, keys  who may do what
callers     work stops when its caller hangs up
problems    RFC 9457 replies
health      `/livez`, `/readyz`, `/metrics`, `/version`
logs        JSON lines with the request id, secrets redacted
metrics     Prometheus, one registry per app
paths       folders that requests may name
revision    a model's folder and the hash of its weights
server      `serve`: uvicorn, the port, the limits of the process
telemetry   OpenTelemetry, if it is installed and asked for
timing      where the time of a request went
testing     `running`: an app on a real port, for tests
"""
