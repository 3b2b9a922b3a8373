"""Teachers in memory for tests of what is made with a teacher."""

from collections import Counter

from camelid.serve.journal import Reply, key_of


class Teacher:
    """Says what `write(request)` says, a text or a Reply, and notes what it was asked.

    Attributes:
      asked: the requests that had no reply yet, in their order.
      replies: the replies by key, as a journal keeps them.
      most: the number of requests that are answered; one more raises KeyboardInterrupt, as a signal would.
    """

    def __init__(self, write, name="teacher", replies=None, most=10**9):
        self.name, self.write, self.most = name, write, most
        self.asked, self.replies, self.counts = [], {} if replies is None else replies, Counter()

    def key(self, request):
        return key_of(self.name, request)

    def ask(self, requests):
        for request in requests:
            key = self.key(request)
            if key not in self.replies:
                if len(self.asked) == self.most:
                    raise KeyboardInterrupt
                self.asked.append(request)
                self.counts[key] += 1
                said = self.write(request)
                self.replies[key] = said if isinstance(said, Reply) else Reply(said)
        return [self.replies[self.key(request)] for request in requests]


def bytes_of(made):
    """All that was made, in the order of ids."""
    from camelid.curate.shards import encode

    kept = [encode(row.to_json()) for row in sorted(made.rows, key=lambda row: row.id)]
    return kept, [encode(each.to_json()) for each in sorted(made.rejected, key=lambda each: each.row.id)]


def reasons(made):
    """How many candidates each step rejected, by reason."""
    return Counter((each.step, each.reason) for each in made.rejected)


def check_made(made, steps, candidates):
    """Checks that ids differ, reasons are those of their steps, and the counts add up to the candidates."""
    ids = [row.id for row in made.rows] + [each.row.id for each in made.rejected]
    assert len(ids) == len(set(ids)) == candidates
    assert all(each.reason in steps[each.step] for each in made.rejected)
