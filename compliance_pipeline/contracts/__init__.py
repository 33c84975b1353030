"""Wire models: what crosses a process or machine boundary. Pydantic only; no I/O, no behaviour."""
