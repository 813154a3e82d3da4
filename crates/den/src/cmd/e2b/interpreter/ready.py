"""Ends with 0 once the server runs code in each language."""

import http.client
import json
import os
import sys

ASKED = {
    "python": ("print(6 * 7)", "42\n"),
    "typescript": ("const answer: number = 42; console.log(answer)", "42\n"),
    "bash": ("echo 42", "42\n"),
}
FURTHER = {
    "ir": ("r", 'cat(6 * 7, "\\n", sep = "")', "42\n"),
    "java": ("java", "System.out.println(6 * 7)", "42\n"),
}
for kernel, (language, code, expected) in FURTHER.items():
    if os.path.isdir(os.path.join(sys.prefix, "share/jupyter/kernels", kernel)):
        ASKED[language] = (code, expected)

for language, (code, expected) in ASKED.items():
    connection = http.client.HTTPConnection("127.0.0.1", 49999, timeout=50)
    body = json.dumps({"code": code, "language": language})
    connection.request("POST", "/execute", body, {"Content-Type": "application/json"})
    said = [json.loads(line) for line in connection.getresponse().read().splitlines()]
    printed = "".join(each["text"] for each in said if each["type"] == "stdout")
    if printed != expected or any(each["type"] == "error" for each in said):
        sys.exit(f"{language}: {said}")
