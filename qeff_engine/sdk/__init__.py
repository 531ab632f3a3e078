"""The one driver of the Cloud AI SDK, found under QAIC_SDK_ROOT."""
