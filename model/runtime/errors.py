"""Why a runner could not be built. All are shown to the operator as they stand.

RunnerStartError
├── CheckpointError     the files are damaged, or are not this model's
├── DeviceError         the device is not there, or cannot compute in the wanted dtype
└── NotEnoughMemory     the weights or the cache do not fit; both numbers are in the text
"""


class RunnerStartError(Exception):
    """Starting failed for a reason that trying again will not cure."""


class CheckpointError(RunnerStartError):
    pass


class DeviceError(RunnerStartError):
    pass


class NotEnoughMemory(RunnerStartError):
    pass
