"""The error for users: which file or setting is wrong, why, and what to do about it."""


class InputError(ValueError):
  """Invalid input, reported in one line: `subject: reason (cure)`.

  Args:
    subject: the file, folder, class, setting or argument at fault.
    reason: what is wrong with it.
    cure: what the user can do about it. Names of arguments stand in backticks, so that a command
      can replace them by its flags.
    usage: True for a usage error (exit code 2), False for a failed job (exit code 1).
    kind: name of the defect, as `condseg-verify` lists it.
  """

  def __init__(self, subject: object, reason: str, cure: str, *, usage: bool = False,
               kind: str = "unreadable") -> None:
    self.kind = kind
    self.subject, self.reason, self.cure, self.usage = str(subject), reason, cure, usage
    super().__init__(f"{subject}: {reason} ({cure})")
