"""Permits that many processes and hosts share, through Redis or Valkey."""
