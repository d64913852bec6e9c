package pageblob

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const (
	// scratchSuffix makes the name of the block blob that ranges are staged on. It is never committed, so it is in no
	// list and the service drops its blocks after a week.
	scratchSuffix = ".sum"
	// scratchBlocks is how many block ids are used: a block that is staged again takes the place of the old one, so the
	// scratch blob never holds more than this many ranges.
	scratchBlocks = 16
	// sourceValid is how long the service may read the source by our signature: much longer than a request, for clocks.
	sourceValid = time.Hour
	// storageScope is what a token for the service is asked for.
	storageScope = "https://storage.azure.com/.default"
)

// Sum has the service compute the CRC-64 of a range; see target.Target. Put Block From URL reads the range where it is
// and answers with its checksum (AZURE.md section 6).
func (t *Target) Sum(ctx context.Context, name, snapshot string, off, n int64) (checksum.Sum, error) {
	o := op{method: "Sum", name: name, read: true}
	if err := firstError(target.CheckName(name), target.CheckSum(off, n, target.MaxPages)); err != nil {
		return 0, target.Refused(o.method, name, err)
	}
	if n == 0 {
		return checksum.Of(nil), nil
	}
	var sum checksum.Sum
	err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		source, auth, err := t.copySource(ctx, c, name, snapshot)
		if err != nil {
			return err
		}
		scratch := c.NewBlockBlobClient(t.endpoint.prefix + name + scratchSuffix)
		resp, err := scratch.StageBlockFromURL(ctx, scratchBlock(off, n), source, &blockblob.StageBlockFromURLOptions{
			Range: blob.HTTPRange{Offset: off, Count: n}, CopySourceAuthorization: auth,
		})
		if err != nil {
			return err
		}
		if len(resp.ContentCRC64) != 8 {
			return target.Refused(o.method, name, target.ErrNoSum)
		}
		sum = checksum.Sum(binary.LittleEndian.Uint64(resp.ContentCRC64))
		return nil
	})
	return sum, err
}

// scratchBlock is the block a range is staged as. All ids of a blob have one length.
func scratchBlock(off, n int64) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%02d", off/n%scratchBlocks))
}

// copySource is a URL that the service itself can read the source by, or one with the authorization beside it.
func (t *Target) copySource(ctx context.Context, c *container.Client, name, snapshot string) (source string, auth *string, err error) {
	s, err := t.sessions.current()
	if err != nil {
		return "", nil, err
	}
	source = c.NewBlobClient(t.endpoint.prefix + name).URL()
	query := ""
	if snapshot != "" {
		query = "&snapshot=" + url.QueryEscape(snapshot)
	}
	switch {
	case s.proof.sas.Reveal() != "":
		return source + "?" + s.proof.sas.Reveal() + query, nil, nil
	case s.proof.key.IsZero():
		token, err := tokens{t.sessions.token}.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{storageScope}})
		if err != nil {
			return "", nil, err
		}
		if query != "" {
			source += "?" + query[1:]
		}
		bearer := "Bearer " + token.Token
		return source, &bearer, nil
	}
	signed, err := t.signSource(s.proof.key.Reveal(), name, snapshot)
	return source + "?" + signed + query, nil, err
}

// signSource signs a read of one blob or snapshot with the account's key.
func (t *Target) signSource(key, name, snapshot string) (string, error) {
	cred, err := blob.NewSharedKeyCredential(t.endpoint.account, key)
	if err != nil {
		return "", fmt.Errorf("%w: not an account key", ErrCredential)
	}
	parts, err := sas.ParseURL(t.endpoint.container)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrURL, err)
	}
	skew, _ := t.Skew()
	values := sas.BlobSignatureValues{
		ContainerName: parts.ContainerName, BlobName: t.endpoint.prefix + name,
		Permissions: (&sas.BlobPermissions{Read: true}).String(), ExpiryTime: time.Now().Add(skew + sourceValid).UTC(),
	}
	if snapshot != "" {
		if values.SnapshotTime, err = time.Parse(snapshotForm, snapshot); err != nil {
			return "", target.Refused("Sum", name, fmt.Errorf("%w: snapshot %.40q", target.ErrNotFound, snapshot))
		}
	}
	signed, err := values.SignWithSharedKey(cred)
	if err != nil {
		return "", fmt.Errorf("%w: signing the source of a checksum: %w", ErrCredential, err)
	}
	return signed.Encode(), nil
}

// snapshotForm is the form of a snapshot's id.
const snapshotForm = "2006-01-02T15:04:05.0000000Z07:00"
