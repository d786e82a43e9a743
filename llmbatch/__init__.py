"""Run a file of prompts through any LLM API, as fast as the limits allow."""
