"""Each operation's definition in plain torch, and faster versions beside it."""
