"""Ends with 0 once the server runs code in each language."""

import http.client
import json
import sys

ASKED = {
    "python": ("print(6 * 7)", "42\n"),
    "typescript": ("const answer: number = 42; console.log(answer)", "42\n"),
    "bash": ("echo 42", "42\n"),
}

for language, (code, expected) in ASKED.items():
    connection = http.client.HTTPConnection("127.0.0.1", 49999, timeout=50)
    body = json.dumps({"code": code, "language": language})
    connection.request("POST", "/execute", body, {"Content-Type": "application/json"})
    said = [json.loads(line) for line in connection.getresponse().read().splitlines()]
    printed = "".join(each["text"] for each in said if each["type"] == "stdout")
    if printed != expected or any(each["type"] == "error" for each in said):
        sys.exit(f"{language}: {said}")
