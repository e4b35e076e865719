"""`helm test`: is the gateway ready, does it name its models, does it answer?"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

GATEWAY, API_KEY = os.environ["GATEWAY"], os.environ["API_KEY"]


def call(path, body=None):
    headers = {"Content-Type": "application/json"}
    if API_KEY:
        headers["Authorization"] = f"Bearer {API_KEY}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(GATEWAY + path, data, headers), timeout=60) as answer:
        return json.load(answer)


for left in range(30, -1, -1):
    try:
        print("ready:", call("/ready")["status"])
        break
    except (urllib.error.URLError, OSError) as error:
        reason = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else error
        if not left:
            sys.exit(f"the gateway is not ready: {reason}")
        time.sleep(2)

if os.environ["KEYS_NEEDED"] and not API_KEY:
    print("keys are on and tests.apiKeySecret names none: readiness is all that was tested")
    sys.exit()
models = [model["id"] for model in call("/v1/models")["data"]]
print("models:", ", ".join(models))
if not models:
    sys.exit("no model is served")
message = {"role": "user", "content": "hello"}
answer = call("/v1/chat/completions", {"model": models[0], "messages": [message], "max_completion_tokens": 8})
print("answer:", answer["id"], "by", answer["system_fingerprint"])
