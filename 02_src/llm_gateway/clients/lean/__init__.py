"""HTTP of our own under LangChain's chat models: they build the payload and read the answer, and no SDK is between.

`http` holds the connections, `records` reads streams, `call` sends one payload; a module for each provider stands where
LangChain expects that provider's SDK.
"""
