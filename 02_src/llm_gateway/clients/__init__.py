"""The only room that knows LangChain's chat models, the SDKs' errors and the providers' headers."""
