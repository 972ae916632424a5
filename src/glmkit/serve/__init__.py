"""The server: OpenAI's API, blank filling and a page over one engine. Needs the packages of the extra [serve]."""
