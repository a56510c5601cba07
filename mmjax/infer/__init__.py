"""Running a trained model: the cache, sampling, generation, the batch runner and the chat session.

`generate.generate` is the one entry for arrays in, tokens out; `batch.run_batch` reads JSONL and writes
JSONL; `chat.ChatSession` holds a conversation. Import the module that is needed: nothing is imported here,
so that a program that only builds `GenerateOptions` does not wait for what it does not use.
"""
