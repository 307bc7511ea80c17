"""The gateway among other libraries; each module needs its own library, and is imported by those who use it."""
