// Package pageblob is the Azure implementation of target.Target: page blobs and small block blobs below a prefix of
// one container, over azblob. It is the only package of the project that imports the Azure SDK.
//
// What it adds to the SDK, and why (AZURE.md has the facts):
//
//   - Nothing is repeated here. The SDK's retries are off, redirects are not followed, Expect: 100-continue is off:
//     a request that was sent twice could land behind a newer write.
//   - A request fails when nothing of it moved for Options.Stall, not after a fixed time: sixteen puts of 4 MiB share
//     a slow line and are all fine.
//   - Every error is a *target.Error with class, code, outcome and next action; the table in codes.go has all of them.
//     The outcome is Known only for an answer of the blob service itself with a status below 500, or 503.
//   - No secret leaves it: the errors of net/http and of the SDK hold URLs (with the SAS) and bodies, so none of
//     theirs is passed on; Secret cannot be printed.
//   - Key and SAS come from a file that is read again when it changes, without a restart.
package pageblob
