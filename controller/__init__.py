"""ContainerStacks billing controller: one leader, elected by PostgreSQL, charges every hour once."""

__version__ = "0.2.0"
