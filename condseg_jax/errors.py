"""The one error a user is meant to read: what is wrong, in which file, and what cures it."""


class InputError(ValueError):
  """Bad input, told in one line.

  Args:
    subject: the file, folder, class or setting at fault.
    reason: what is wrong with it.
    cure: what the user can do about it.
    usage: True for a wrong command line (exit code 2), False for a failed job (exit code 1).
    kind: the defect in one word, by which `condseg-verify` names it.
  """

  def __init__(self, subject, reason: str, cure: str, *, usage: bool = False,
               kind: str = "unreadable"):
    self.kind = kind
    self.subject, self.reason, self.cure, self.usage = str(subject), reason, cure, usage
    super().__init__(f"{subject}: {reason} ({cure})")
