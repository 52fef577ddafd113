"""The domain tasks that need no hub: made of pinned wheels. Importing this loads no heavy library."""
