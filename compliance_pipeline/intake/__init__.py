"""Events in: receiver, tokens, and the inbox that holds them. Knows nothing of platforms, media or Dagster."""
