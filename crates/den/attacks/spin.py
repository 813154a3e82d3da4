# Every processor, by many times as many processes as there are.
storm(100, lambda i: [None for _ in iter(int, 1)])
