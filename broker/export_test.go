package broker

// OpenFaultyJournal is OpenJournal on a disk that answers each step as fault says.
func OpenFaultyJournal(path string, fault func(step string) error) (*JournalFile, error) {
	return openJournal(path, fault)
}

// CheckPages is checkPages.
var CheckPages = checkPages

// KeepAudit is keepAudit.
const KeepAudit = keepAudit

// FullAudit is how many records the audit log has when it is full, and the oldest are dropped.
const FullAudit = keepAudit + dropAudit

// MaxQueue is how many events wait for a slow consumer.
const MaxQueue = maxQueue
