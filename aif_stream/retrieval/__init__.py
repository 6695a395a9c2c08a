"""The reference upstream: names about ten thousand candidates of a user over HTTP, channel by channel."""
