package pageblob

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// golden is the whole table as the operator sees it: code of the service, class, stable code. The stable codes are
// part of the operator's contract: a line may be added, and none changed.
const golden = `
AccountAlreadyExists bug bad-request
AccountBeingCreated recoverable account-being-created
AccountIsDisabled non-recoverable account-disabled
AccountRequiresHttps non-recoverable not-authorized
AuthenticationFailed non-recoverable not-authorized
AuthorizationFailure non-recoverable not-permitted
AuthorizationPermissionMismatch non-recoverable not-permitted
AuthorizationProtocolMismatch non-recoverable not-permitted
AuthorizationResourceTypeMismatch non-recoverable not-permitted
AuthorizationServiceMismatch non-recoverable not-permitted
AuthorizationSourceIPMismatch non-recoverable not-permitted
BlobAlreadyExists non-recoverable target-exists
BlobArchived non-recoverable blob-archived
BlobBeingRehydrated recoverable blob-archived
BlobImmutableDueToPolicy non-recoverable immutable
BlobNotFound non-recoverable target-not-found
BlobOverwritten recoverable blob-in-use
BlobTypeNotSupported non-recoverable account-kind
BlobUsesCustomerSpecifiedEncryption non-recoverable encryption-key
ConditionNotMet recoverable etag-changed
ContainerBeingDeleted non-recoverable container-being-deleted
ContainerDisabled non-recoverable container-disabled
ContainerNotFound non-recoverable container-not-found
ContentLengthLargerThanTierLimit non-recoverable too-large
Crc64Mismatch recoverable checksum-mismatch
FeatureNotYetSupportedForHierarchicalNamespaceAccounts non-recoverable account-kind
FeatureVersionMismatch non-recoverable service-version
ImmutabilityPolicyDeleteOnLockedPolicy non-recoverable immutable
InfiniteLeaseDurationRequired bug bad-request
InsufficientAccountPermissions non-recoverable not-permitted
InternalError recoverable service-error
InvalidAuthenticationInfo non-recoverable not-authorized
InvalidBlobType non-recoverable blob-type
InvalidHeaderValue non-recoverable service-version
InvalidMd5 recoverable checksum-mismatch
InvalidPageRange bug bad-range
InvalidRange bug bad-range
InvalidResourceName bug bad-name
InvalidUri bug bad-name
InvalidVersionForPageBlobOperation non-recoverable service-version
KeyBasedAuthenticationNotPermitted non-recoverable not-permitted
KeyVaultEncryptionKeyNotFound non-recoverable encryption-key
LeaseAlreadyBroken recoverable lease-lost
LeaseAlreadyPresent non-recoverable lease-taken
LeaseIdMismatchWithBlobOperation non-recoverable lease-taken
LeaseIdMismatchWithContainerOperation non-recoverable container-leased
LeaseIdMismatchWithLeaseOperation non-recoverable lease-taken
LeaseIdMissing non-recoverable lease-taken
LeaseIsBreakingAndCannotBeAcquired recoverable lease-breaking
LeaseIsBreakingAndCannotBeChanged recoverable lease-breaking
LeaseIsBrokenAndCannotBeRenewed recoverable lease-lost
LeaseLost recoverable lease-lost
LeaseNotPresentWithBlobOperation recoverable lease-lost
LeaseNotPresentWithContainerOperation recoverable container-lease-lost
LeaseNotPresentWithLeaseOperation recoverable lease-lost
MaxBlobSizeConditionNotMet non-recoverable too-large
Md5Mismatch recoverable checksum-mismatch
MemoryExtentStoreAtSizeLimit recoverable emulator-full
MetadataTooLarge non-recoverable too-large
NoAuthenticationInformation non-recoverable not-authorized
OperationNotAllowedOnIncrementalCopyBlob non-recoverable blob-type
OperationTimedOut recoverable service-timeout
OutOfRangeInput bug bad-range
PendingCopyOperation recoverable blob-in-use
PublicAccessNotPermitted non-recoverable not-authorized
RequestBodyTooLarge non-recoverable too-large
RequestUrlFailedToParse bug bad-name
ResourceAlreadyExists non-recoverable target-exists
ResourceNotFound non-recoverable target-not-found
ResourceTypeMismatch non-recoverable blob-type
SequenceNumberConditionNotMet recoverable sequence-changed
ServerBusy recoverable throttled
SnaphotOperationRateExceeded recoverable snapshot-rate
SnapshotCountExceeded non-recoverable snapshot-count
SnapshotOperationRateExceeded recoverable snapshot-rate
SnapshotsPresent recoverable has-snapshots
SystemInUse recoverable blob-in-use
TargetConditionNotMet recoverable etag-changed
UnauthorizedBlobOverwrite non-recoverable not-permitted
`

func TestI12_GoldenTable(t *testing.T) {
	var lines []string
	for _, code := range slices.Sorted(maps.Keys(table)) {
		v := table[code]
		e := v.error(op{method: "PutPages", name: "n"}, fmt.Errorf("%w: %s", v.err, code))
		lines = append(lines, fmt.Sprintf("%s %s %s", code, e.Class, e.Code))
	}
	want := strings.Split(strings.TrimSpace(golden), "\n")
	for _, line := range lines {
		if !slices.Contains(want, line) {
			t.Errorf("not in the golden table: %s", line)
		}
	}
	for _, line := range want {
		if !slices.Contains(lines, line) {
			t.Errorf("gone or changed: %s", line)
		}
	}
}

// TestSentinels: what callers decide by is one of package target's errors; a container that is gone is never a blob
// that is gone, and a lease lost is a lease not held.
func TestSentinels(t *testing.T) {
	for code, v := range table {
		if errors.Is(v.err, target.ErrNoContainer) && errors.Is(v.err, target.ErrNotFound) {
			t.Errorf("%s reads as an empty container", code)
		}
		if strings.HasPrefix(string(code), "Lease") && !errors.Is(v.err, target.ErrLeased) {
			t.Errorf("%s is not about a lease", code)
		}
	}
	if !errors.Is(table[bloberror.LeaseLost].err, target.ErrLeaseLost) || errors.Is(table[bloberror.LeaseIDMissing].err, target.ErrLeaseLost) {
		t.Error("a lease lost and a lease never held are one")
	}
}
